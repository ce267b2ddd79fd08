# SPDX-License-Identifier: Apache-2.0
"""
The questions of docs/fleet.md, asked of Spark in local mode and of DuckDB, against ``summary``.

    python bench/fleet.py [CALLS]

The Parquet tables are of two nodes with planted calls, made here: no VM and no root is needed.
Spark takes ``pip install pyspark`` and a Java runtime (``JAVA_HOME``); without them it is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
# Instead of this folder: its profile.py is not the module of Python that Spark imports.
sys.path[:1] = [str(ROOT), str(ROOT / "tests/unit")]

import duckdb  # noqa: E402
from cluster_fixtures import planted  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[str], list[tuple[Any, ...]]]

SLOWEST, FLOODS, LINKS = (
    "The slowest calls over all nodes",
    "Who floods whom",
    "Which link carries how many messages",
)
#: What Spark spells in another way.
_SPELLED = (
    (r"'fleet/(\w+)/[^']*'", r"\1"),
    (r"filter \(", "filter (where "),
    (r"quantile_cont", "percentile"),
    (r'"(\w+)"', r"`\1`"),
)


def run(*words: str) -> str:
    """What a command of this package prints."""
    command = [sys.executable, "-m", "scope_ebpf.cli.main", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def queries() -> dict[str, str]:
    """The queries of the page by the line above each."""
    page = (ROOT / "docs/fleet.md").read_text()
    return dict(re.findall(r"\n([^\n]+):\n\n((?:    [^\n]*\n)+)", page))


def duck(tables: Path) -> Ask:
    """A function that asks DuckDB."""

    def ask(query: str) -> list[tuple[Any, ...]]:
        found = duckdb.sql(query.replace("fleet/", f"{tables}/"))
        return found.fetchall() if found else []

    return ask


def spark(tables: Path) -> Ask:
    """A function that asks Spark, which reads each table without options."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
    )
    made = session.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    made.sparkContext.setLogLevel("ERROR")
    for table in tables.iterdir():
        made.read.parquet(str(table)).createOrReplaceTempView(table.name)

    def ask(query: str) -> list[tuple[Any, ...]]:
        for pattern, text in _SPELLED:
            query = re.sub(pattern, text, query)
        return [tuple(row) for row in made.sql(query).collect()]

    return ask


def compare(name: str, ask: Ask, found: dict[str, Any]) -> bool:
    """Print for each question whether the answer is that of ``summary``."""
    asked = queries()
    slowest = [round(row[-1], 3) for row in ask(asked[SLOWEST])[:10]]
    expected = [round(row["seconds"] * 1e3, 3) for row in found["slowest_calls"]]
    names = ("from", "sender", "to", "receiver", "messages", "bytes")
    flows = {tuple(flow[name] for name in names) for flow in found["flows"]}
    links = {(one["from"], one["to"], one["by_class"]["message"]) for one in found["links"]}
    equal = {
        SLOWEST: slowest == expected[: len(slowest)] and bool(slowest),
        FLOODS: set(ask(asked[FLOODS])) == flows,
        LINKS: {row[:3] for row in ask(asked[LINKS])} == links,
    }
    for question, same in equal.items():
        print(f"{name}: {question}: {'as summary' if same else 'NOT as summary'}")
    others = [text for question, text in asked.items() if question not in equal]
    rows = [len(ask(text)) for text in others]
    print(f"{name}: the other {len(others)} run, with {rows} rows")
    return all(equal.values())


def main() -> int:
    """Make the captures and the tables, and ask."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with TemporaryDirectory() as name:
        folder = Path(name)
        planted(folder, count)
        whole, tables = folder / "all.scope", folder / "fleet"
        run("merge", *(str(folder / one) for one in ("a.scope", "b.scope")), "-o", str(whole))
        run("export", str(whole), "--to", "parquet", "-o", str(tables))
        found = json.loads(run("summary", str(whole), "-f", "json"))
        calls = sum(row["calls"] for row in found["calls"])
        print(f"{count} planted calls, {calls} in summary")
        good = compare("DuckDB", duck(tables), found)
        try:
            ask = spark(tables)
        except ImportError as error:
            print(f"Spark: left out: {error}")
        else:
            good &= compare("Spark", ask, found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
