# SPDX-License-Identifier: Apache-2.0
"""
Captures of strangers: summed up, and exported to every format.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import struct
from typing import TYPE_CHECKING

import capture_fixtures
import mutation
from capture_fixtures import END, TARGET, head, pid, story
from stream_fixtures import record

from scope_ebpf import events
from scope_ebpf.beam.memory.terms import PidCodec, PortCodec, Shuffle
from scope_ebpf.capture import frames
from scope_ebpf.capture.frames import Block, BlockKind, Frames
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.cli.summary import warn
from scope_ebpf.sinks import parquet
from scope_ebpf.sinks.otlp import Spans, line
from scope_ebpf.sinks.perfetto.timeline import Timeline
from scope_ebpf.sinks.report import print_report
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from scope_ebpf.capture.reader import Contents

JSON = (BlockKind.HEAD, BlockKind.NAMES, BlockKind.SAMPLES, BlockKind.END)


def _seeds(folder: Path) -> list[list[Block]]:
    """
    Whole captures: of OTP 25 and 26, by USDT probes, of every kind of record, of another schema.
    """
    shuffle = Shuffle(0xFFFF, 0xF, 12, 0xFFF, 4)
    later = head(pids=PidCodec(shuffle), ports=PortCodec(shuffle), host={"name": "h", "cpus": 2})
    texts = story()
    texts["flags"] = events.FLAG_TEXT_PID
    every = [record(name, time_ns=10**10 + n, process=pid(1), tid=101) for n, name in
             enumerate(events.KINDS)]  # fmt: skip
    found = []
    for number, (facts, batches, end) in enumerate(
        [(head(), [story()], END), (later, [story(), story()], None), (head(), [texts], END),
         (head(target={**TARGET, "node": None}), every, END)]
    ):  # fmt: skip
        path = folder / f"seed-{number}"
        capture_fixtures.write(path, *batches, end=end, facts=facts)
        with path.open("rb") as file:
            found.append(list(Frames(file)))
    older = copy.deepcopy(found[0])
    document = json.loads(older[0].payload)
    document["schema"]["kinds"]["telepathy"] = document["schema"]["kinds"].pop("hibernate")
    document["schema"]["kinds"]["gc"]["classes"] = ["minor", "major"]
    older[0] = Block(BlockKind.HEAD, json.dumps(document).encode())
    return [*found, older]


class Captures:
    """
    One case is one mutated capture, read by the summary and by one export.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.scope"
        self._seeds = _seeds(folder)
        # A table for people takes as long as all others together.
        self._readers = [_text, *[_json, _perfetto, _jsonl, _otlp] * 3, *[_parquet] * 2]

    def run(self, random: Random) -> None:
        """
        Raises CaptureError for what is refused.
        """
        self._path.write_bytes(self._made(random))
        capture = Capture(self._path)
        contents = capture.contents()
        random.choice(self._readers)(capture, contents)

    def _made(self, random: Random) -> bytes:
        blocks = list(random.choice(self._seeds))
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            _change_blocks(random, blocks)
        data = frames.start() + b"".join(frames.frame(*block) for block in blocks)
        return mutation.spoil(random, data, 1) if random.random() < 0.05 else data


def _change_blocks(random: Random, blocks: list[Block]) -> None:
    index, choice = random.randrange(len(blocks)), random.random()
    kind, payload = blocks[index]
    if choice < 0.03:
        blocks.insert(random.randrange(len(blocks) + 1), blocks[index])
    elif choice < 0.05 and len(blocks) > 1:
        del blocks[index]
    elif choice < 0.07:
        random.shuffle(blocks)
    elif choice < 0.1:
        blocks[index] = Block(random.choice([*BlockKind, 0, 99]), payload)
    elif choice < 0.11:
        blocks[index] = Block(kind, bytes(random.choice((0, 4, 1 << 20))))
    elif choice < 0.75 and any(block.kind in JSON for block in blocks):
        with_json = [n for n, block in enumerate(blocks) if block.kind in JSON]
        index = random.choice([with_json[0], *[random.choice(with_json)] * 2])
        blocks[index] = Block(blocks[index].kind, _json_of(random, blocks[index].payload))
    elif kind == BlockKind.RECORDS and random.random() < 0.7:
        blocks[index] = Block(kind, _records(random, payload))
    else:
        blocks[index] = Block(kind, mutation.spoil(random, payload, random.choice((1, 5))))


def _json_of(random: Random, payload: bytes) -> bytes:
    try:
        document = mutation.change(random, json.loads(payload), random.choice((1, 1, 2, 5)))
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # what was changed before is no JSON, or holds itself
        return mutation.spoil(random, payload, 2)


def _records(random: Random, payload: bytes) -> bytes:
    """
    Words of records replaced in their columns: the block stays one of records.
    """
    made = bytearray(payload)
    for _ in range(random.choice((1, 5, 50))):
        if len(made) >= 12:
            struct.pack_into("<Q", made, random.randrange(4, len(made) - 7), mutation.word(random))
    return bytes(made)


def _plain(text: str) -> None:
    """
    Nothing that a terminal obeys.
    """
    odd = {c for c in text if not c.isprintable() and c != "\n"}
    assert not odd, f"control characters reach the terminal: {odd!r}"


def _text(_capture: Capture, contents: Contents) -> None:
    output = io.StringIO()
    print_report(contents.summary(), output)
    _plain(output.getvalue())
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        warn(contents)
    _plain(said.getvalue())


def _json(_capture: Capture, contents: Contents) -> None:
    _plain(json.dumps(contents.summary().as_json(), allow_nan=False))


def _perfetto(capture: Capture, contents: Contents) -> None:
    Timeline(capture, contents, io.BytesIO()).write()


def _jsonl(capture: Capture, contents: Contents) -> None:
    output, terms = io.StringIO(), CapturedTerms(contents)
    sink = Stream(output, terms, "jsonl", terms.who, offset_ns=contents.head.clocks.to_wall)
    for batch in capture.batches():
        sink.write(batch)
    for text in output.getvalue().splitlines():
        json.loads(text)
        _plain(text)


def _otlp(capture: Capture, contents: Contents) -> None:
    for request in Spans(capture, contents).requests():
        _plain(line(request))


def _parquet(capture: Capture, contents: Contents) -> None:
    parquet.write(capture, contents, io.BytesIO())
