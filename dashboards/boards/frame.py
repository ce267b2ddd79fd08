# SPDX-License-Identifier: Apache-2.0
"""
What the dashboards have in common: variables, links, marks on the time axis, and the grid.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    GridPos,
    Panel,
    RowPanel,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.table import Options as TableOptions

from boards.colours import PURPLE, VERMILLION
from boards.nodes import VARIABLE, slots
from boards.panels import SOURCE, built
from boards.records import FIRING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from boards.records import Board, Row

TAG: Final = "scope-ebpf"
_COLUMNS: Final = 24
_EVERY: Final = VariableOption(text=["All"], value=["$__all"])
#: Name, colour, expression and text of the marks on the time axis.
_MARKS: Final = (
    (
        "VM started",
        PURPLE,
        'changes(beam_start_time_seconds{instance=~"$host", node=~"$node"}[$__rate_interval]) > 0',
        "{{node}} {{instance}} was started",
    ),
    (
        "Alert",
        VERMILLION,
        FIRING,
        "{{alertname}} {{node}} {{instance}}",
    ),
)


def text(board: Board) -> str:
    """The dashboard as the JSON that Grafana reads."""
    made = (
        dashboard.Dashboard(f"scope-ebpf / {board.title}")
        .uid(board.uid)
        .description(board.description)
        .tags([TAG, "beam", "erlang"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    made.variables(_variables()).links([_links()]).annotations([_Mark(*each) for each in _MARKS])
    line = 0
    for row in board.rows:
        line = _add_row(made, row, line)
    return json.dumps(_tidied(made.build()), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _tidied(model: Dashboard) -> Dashboard:
    """The *model* with numbered panels, and without what the SDK writes and Grafana 12 does not know."""
    for number, panel in enumerate(_unfolded(model), 1):
        panel.id_val = number
        if isinstance(panel, Panel) and isinstance(panel.options, TableOptions):
            panel.options.footer = None
    for variable in (model.templating and model.templating.list_val) or []:
        variable.auto = variable.auto_min = variable.auto_count = None
        variable.skip_url_sync = variable.name == VARIABLE  # no link may change expressions
    return model


def _unfolded(model: Dashboard) -> Iterator[Panel | RowPanel]:
    """All panels and rows, those in folded rows too."""
    for panel in model.panels or []:
        yield panel
        if isinstance(panel, RowPanel):
            yield from panel.panels


def _add_row(made: dashboard.Dashboard, row: Row, line: int) -> int:
    """Lay out *row* from *line* on, and return the line after it."""
    heading = dashboard.Row(row.title).grid_pos(GridPos(x=0, y=line, w=_COLUMNS, h=1))
    if row.folded:
        heading.collapsed(True)
        _lay_out(heading, row, line + 1)
        made.with_row(heading)
        return line + 1
    made.with_row(heading)
    return _lay_out(made, row, line + 1)


def _lay_out(made: dashboard.Dashboard | dashboard.Row, row: Row, line: int) -> int:
    column, height = 0, 0
    for panel in row.panels:
        if column + panel.width > _COLUMNS:
            line, column, height = line + height, 0, 0
        place = GridPos(x=column, y=line, w=panel.width, h=panel.height)
        made.with_panel(built(panel).grid_pos(place))
        column, height = column + panel.width, max(height, panel.height)
    return line + height


def _variables() -> list[Any]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _choice("host", "Host", "label_values(beam_target_info, instance)"),
        _choice("node", "Node", 'label_values(beam_target_info{instance=~"$host"}, node)'),
        dashboard.CustomVariable(VARIABLE)
        .values(VARIABLE)
        .include_all(True)
        .all_value(slots())
        .current(VariableOption(text="All", value="$__all"))
        .hide(VariableHide.HIDE_VARIABLE)
        .description("How lines of nodes are drawn: dashboards/boards/nodes.py"),
    ]


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_EVERY)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("scope-ebpf").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.keep_time(True).include_vars(True)


class _Titled(AnnotationQuery):
    """The SDK's model with a field of the Prometheus data source that it does not know."""

    title = ""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "titleFormat": self.title}


class _Mark(dashboard.AnnotationQuery):
    """A mark that says what it is."""

    def __init__(self, name: str, colour: str, expr: str, title: str) -> None:
        made = _Titled(name=name, datasource=SOURCE, icon_color=colour, expr=expr)
        made.title = title
        self._internal = made
