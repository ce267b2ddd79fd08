# SPDX-License-Identifier: Apache-2.0
"""
Runs the examples of the documents on VMs of its own, and prints what they print.

    sudo .venv/bin/python bench/examples.py [PAGE ...]

A page is the name of a document. Its examples, with their output, go to standard output, to be
pasted into the page. tests/contract/test_docs.py says which of them are no longer what commands
print.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
#: Commands by page; PID is that of the VM.
SHOP = {
    "scope-trace": [
        "scope-trace --pid PID --duration 5",
        "scope-trace --pid PID --duration 5 --exact",
        "scope-trace --pid PID --events exit --format jsonl | head -2",
        "scope-trace --pid PID --stream 2>/dev/null | head -3",
    ],
    "profile": [
        "scope-trace profile --pid PID",
        "scope-trace profile --off-cpu --pid PID --duration 5",
    ],
    "capture": [
        "scope-trace record --pid PID --duration 3 --max-cost 100% -o run.scope",
        "scope-trace export run.scope --to perfetto",
    ],
}
NAMES = {
    "ps": ["scope-trace ps names_full --pid PID", "scope-trace ps nobody --pid PID"],
    "top": ["scope-trace top --pid PID --once --sort mailbox --limit 8"],
}
WEDGED = {"schedulers": ["scope-trace schedulers --pid PID --once"]}
HELD = {
    "held": [
        "scope-trace ets --pid PID --once --limit 5",
        "scope-trace ports --pid PID --once --limit 5",
        "scope-trace stacks --pid PID --limit 1",
    ]
}
SERVERS = {
    "genservers": [
        "scope-trace genservers --pid PID --duration 5 --limit 4 --budget none",
        "scope-trace genservers --pid PID --duration 5 --limit 4 --no-hooks",
    ]
}
TELLING = {
    "telemetry": [
        "scope-trace telemetry --pid PID --events 'oban.*,*.query,phoenix.endpoint.*' --duration 5"
    ],
    "requests": ["scope-trace requests --pid PID --limit 1 --duration 5"],
}
#: What the timeline of a capture is asked.
QUESTION = """\
select process_track.name as process, slice.name as state, sum(dur) / 1000000 as ms
from slice join process_track on slice.track_id = process_track.id
where slice.name in ('running', 'runnable', 'waiting') group by 1, 2"""


@contextmanager
def shop(folder: Path) -> Iterator[int]:
    """The node of docs/demo, for as long as the block lasts."""
    subprocess.run(["erlc", "-o", folder, ROOT / "docs/demo/shop.erl"], check=True)
    flags = ["-noinput", "-kernel", "logger_level", "none", "-pa", str(folder), "-s", "shop"]
    with subprocess.Popen(["erl", *flags]) as node:
        try:
            subprocess.run(["sleep", "2"], check=True)  # its start is none of the examples
            yield node.pid
        finally:
            node.kill()


@contextmanager
def names(folder: Path, *, wedged: bool) -> Iterator[int]:
    """A VM of many kinds of processes; *wedged*, with a native function on each scheduler."""
    library = folder / "names_nif.so"
    source = ROOT / "tests/workloads/names_nif.c"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, source, "-I/usr/lib/erlang/usr/include"],
        check=True,
    )
    env = {"NAMES_NIF": str(library.with_suffix(""))}
    flags = ("-s", "names_mix", "-names_size", "1800", "+S", "2:2")
    with beams_run.start_beam("stock25", *flags, env=env) as beam:
        beam.expect("ready")
        if wedged:
            beam.send("nif")
            subprocess.run(["sleep", "1"], check=True)
        yield beam.pid


@contextmanager
def servers() -> Iterator[int]:
    """A VM with servers that wait for each other, and a crowd that waits for one of them."""
    with beams_run.start_beam("stock25", "-s", "gs_main") as beam:
        beam.expect("ready")
        beam.ask("crowd 20")
        yield beam.pid


@contextmanager
def telling() -> Iterator[int]:
    """A VM that reports to telemetry twelve requests, and of other events, twice a second."""
    part = beams_run.compiled_part("stock25", "telemetry-1.3")
    with beams_run.start_beam("stock25", "-pa", part, "-s", "telling") as beam:
        beam.expect("ready")
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.5):
                beam.ask("requests 12")
                beam.ask("emit 4")

        worker = threading.Thread(target=work)
        worker.start()
        try:
            yield beam.pid
        finally:
            over.set()
            worker.join()


@contextmanager
def holding() -> Iterator[int]:
    """A VM that holds tables of every kind."""
    with beams_run.start_beam("stock25", "-s", "holding") as beam:
        beam.expect("ready")
        yield beam.pid


def show(pid: int, pages: dict[str, list[str]], folder: Path, wanted: list[str]) -> None:
    """Print the examples of those of *pages* that are wanted."""
    for page in [page for page in pages if not wanted or page in wanted]:
        print(f"== {page}")
        for command in pages[page]:
            line = command.replace("PID", str(pid))
            words, pipe, rest = line.partition(" | ")
            module = f"{shlex.quote(sys.executable)} -m scope_ebpf.cli.main"
            run = words.replace("scope-trace", module, 1) + pipe + rest
            done = subprocess.run(
                run,
                check=False,
                shell=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            text = done.stdout.decode().replace(str(folder), "/srv/shop/priv")
            text = re.sub(r"/[\w/.-]*/(names_\w+\.erl)", r"/srv/shop/src/\1", text)
            shown = (f"    {row}".rstrip() for row in text.splitlines())
            print("\n".join([f"    $ sudo {line}", *shown, ""]))
        if page == "capture":
            print_answer(folder / "run.pftrace")


def print_answer(trace: Path) -> None:
    """Print what the trace processor answers about the till."""
    import perfetto_sql

    for row in perfetto_sql.ask(trace, QUESTION)[0]:
        if row["process"].startswith("till"):
            print(f"    {row['process']:<15} {row['state']:<10} {row['ms']:>5}")


def main() -> None:
    """Print them."""
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if not wanted or set(wanted) & set(SHOP):
            with shop(folder) as pid:
                show(pid, SHOP, folder, wanted)
        if not wanted or set(wanted) & set(SERVERS):
            with servers() as pid:
                show(pid, SERVERS, folder, wanted)
        if not wanted or set(wanted) & set(TELLING):
            with telling() as pid:
                show(pid, TELLING, folder, wanted)
        if not wanted or set(wanted) & set(HELD):
            with holding() as pid:
                show(pid, HELD, folder, wanted)
        for pages, wedged in ((NAMES, False), (WEDGED, True)):
            if not wanted or set(wanted) & set(pages):
                with names(folder, wedged=wedged) as pid:
                    show(pid, pages, folder, wanted)


if __name__ == "__main__":
    main()
