# SPDX-License-Identifier: Apache-2.0
"""
Records of panels as Grafana's panels.
"""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BarGaugeNamePlacement,
    BarGaugeSizing,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode
from grafana_foundation_sdk.models.text import TextMode

from boards.colours import BLUE, PURPLE, STATES
from boards.nodes import LOOKS, SHOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from boards.nodes import Look
    from boards.records import Panel, Query

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
#: What a link to another dashboard takes along.
CONTEXT: Final = (
    "${datasource:queryparam}&${host:queryparam}&${node:queryparam}&${__url_time_range}"
)
#: Pixels of the names in a panel of figures.
_NAME_SIZE: Final = 12
#: Pixels of a column, so that those of all nodes fit side by side.
_NARROWEST: Final = 90


def built(panel: Panel) -> Any:
    """The SDK's builder of *panel*, without its place."""
    made = _KINDS[panel.kind](panel)
    made.title(panel.title)
    if panel.kind == "text":
        return made
    made.description(panel.description).datasource(SOURCE)
    made.unit(panel.unit).thresholds(_thresholds(panel))
    made.no_value("-" if panel.kind == "table" else "no data")
    for bound, setter in ((panel.low, made.min), (panel.high, made.max)):
        if bound is not None:
            setter(bound)
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    made.targets([_target(panel, *each) for each in _lettered(panel)])
    if panel.more:
        title = f"More: {panel.more}"
        url = f"/d/scope-ebpf-{panel.more}?{CONTEXT}"
        made.links([dashboard.DashboardLink(title).type(DashboardLinkType.LINK).url(url)])
    return made


def _target(panel: Panel, ref: str, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.promql).datasource(SOURCE)
    target.legend_format(query.names(panel.kind)).editor_mode(QueryEditorMode.CODE)
    if panel.kind == "table":
        target.legend_format("{{node}}")  # not shown
        return target.instant().format(PromQueryFormat.TABLE)
    if panel.kind == "bars":
        return target.instant()
    if panel.kind == "heatmap":
        return target.range().format(PromQueryFormat.HEATMAP)
    return target.range()


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    calm, warn, bad = STATES
    if panel.kind == "stat" and panel.bad is not None:
        calm = BLUE  # the background of white figures
    bounds = [(panel.warn, warn), (panel.bad, bad)]
    steps = [Threshold(value=None, color=calm)]
    if panel.falling:
        bounds = [(panel.warn, calm), (panel.bad, warn)][::-1]
        steps = [Threshold(value=None, color=bad)]
    steps += [Threshold(value=at, color=colour) for at, colour in bounds if at is not None]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _of_colour(hue: str) -> list[DynamicConfigValue]:
    value = {"mode": FieldColorModeId.FIXED, "fixedColor": hue}
    return [DynamicConfigValue(id_val="color", value=value)]


def _series(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().fill_opacity(30 if panel.stack else 8).line_width(2)
    made.show_points(VisibilityMode.NEVER)
    _colour(made, panel)
    made.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    made.tooltip(
        common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    )
    if panel.bad is not None:
        made.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    if panel.unit == "percentunit":
        made.axis_soft_max(0.01)  # where all is zero the axis would reach to 10,000 %
    if panel.stack:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    return made


def _colour(made: timeseries.Panel, panel: Panel) -> None:
    """Colours: a node has that of its slot, hosts have shades of one, a meaning has its own."""
    alone = len(panel.queries) == 1 and not panel.hues
    scheme = dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
    if not panel.of_nodes:
        mode = FieldColorModeId.SHADES if alone else FieldColorModeId.FIXED
        scheme = dashboard.FieldColor().mode(mode).fixed_color(panel.queries[0].hue)
    made.color_scheme(scheme)
    if panel.of_nodes:
        for slot, look in enumerate(LOOKS):
            made.override_by_regexp(f"/^{slot} /", [*_of_colour(look.colour), _of_dash(look)])
    for ref, query in _lettered(panel):
        if not query.of_nodes and (query is not panel.queries[0] or panel.of_nodes):
            made.override_by_query(ref, _of_colour(query.hue))
    for pattern, hue in panel.hues:
        made.override_by_regexp(f"/{pattern}/", _of_colour(hue))
    if panel.of_nodes:  # the last: names are matched as they are then
        shown = DynamicConfigValue(id_val="displayName", value=SHOWN)
        made.override_by_regexp("/^\\d /", [shown])


def _of_dash(look: Look) -> DynamicConfigValue:
    value = {"fill": look.fill} | ({"dash": list(look.dash)} if look.dash else {})
    return DynamicConfigValue(id_val="custom.lineStyle", value=value)


def _latest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def _stat(panel: Panel) -> stat.Panel:
    made = stat.Panel().reduce_options(_latest()).orientation(VizOrientation.AUTO)
    made.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    made.color_mode(
        BigValueColorMode.BACKGROUND_SOLID if panel.bad is not None else BigValueColorMode.VALUE
    )
    # Else names are made as small as they are long; so a long one takes more lines.
    made.text(common.VizTextDisplayOptions().title_size(_NAME_SIZE))
    return made.graph_mode(BigValueGraphMode.AREA).text_mode(BigValueTextMode.VALUE_AND_NAME)


def _bars(_panel: Panel) -> bargauge.Panel:
    made = bargauge.Panel().reduce_options(_latest()).orientation(VizOrientation.HORIZONTAL)
    made.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    # At the left there is no room for a process, a node and a host.
    made.name_placement(BarGaugeNamePlacement.TOP).show_unfilled(True)
    made.sizing(BarGaugeSizing.MANUAL).min_viz_height(28).max_viz_height(40)
    return made.display_mode(BarGaugeDisplayMode.BASIC)


def _table(panel: Panel) -> table.Panel:
    made = table.Panel().show_header(True).min_width(_NARROWEST)
    made.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    values = {f"Value #{ref}": q.column for ref, q in _lettered(panel)}
    shown = {name: column for name, column in values.items() if column}
    names = dict(panel.columns) | shown | dict(panel.details)
    # Columns that are not named are left out: what else a series is labelled with.
    made.transformations(
        [
            DataTransformerConfig(id_val="merge", options={}),
            DataTransformerConfig(
                id_val="filterFieldsByName", options={"include": {"names": list(names)}}
            ),
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {},
                    "indexByName": {name: place for place, name in enumerate(names)},
                    "renameByName": names,
                },
            ),
        ]
    )
    for query in panel.queries:
        if query.column:
            made.override_by_name(query.column, _of_column(query))
    return made


def _lettered(panel: Panel) -> list[tuple[str, Query]]:
    return list(zip(ascii_uppercase, panel.queries, strict=False))


def _of_column(query: Query) -> list[DynamicConfigValue]:
    """Unit, and colours of the cells if there are values that are bad."""
    found = [DynamicConfigValue(id_val="unit", value=query.unit or "short")]
    if query.unit == "percentunit":
        found.append(DynamicConfigValue(id_val="decimals", value=1))
    if query.bad is not None:
        calm, warn, bad = STATES
        steps: list[dict[str, object]] = [{"value": None, "color": calm}]
        for at, colour in ((query.warn, warn), (query.bad, bad)):
            if at is not None:
                steps.append({"value": at, "color": colour})
        value = {"mode": "absolute", "steps": steps}
        found.append(DynamicConfigValue(id_val="thresholds", value=value))
        cell = {"type": "color-text"}
        found.append(DynamicConfigValue(id_val="custom.cellOptions", value=cell))
    return found


def _text(panel: Panel) -> text.Panel:
    return text.Panel().mode(TextMode.MARKDOWN).content(panel.text)


def _heatmap(panel: Panel) -> heatmap.Panel:
    made = heatmap.Panel().calculate(False).cell_gap(1)
    made.color(
        heatmap.HeatmapColorOptions()
        .mode(HeatmapColorMode.SCHEME)
        .scheme("Cividis")
        .steps(64)
        .fill(STATES[0])
        .exponent(0.5)
    )
    made.exemplars_color(PURPLE).rows_frame(
        heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO)
    )
    made.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR))
    return made.y_axis(heatmap.YAxisConfig().unit(panel.unit)).show_legend().hide_y_histogram()


_KINDS: Final[dict[str, Callable[[Panel], Any]]] = {
    "series": _series,
    "stat": _stat,
    "bars": _bars,
    "table": _table,
    "heatmap": _heatmap,
    "text": _text,
}
