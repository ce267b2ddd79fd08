# SPDX-License-Identifier: Apache-2.0
"""The file format of speedscope (speedscope's published ``file-format-schema.json``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scope_ebpf.results.documents.exports import (
        SpeedscopeDocument,
        SpeedscopeFrame,
        SpeedscopeProfile,
    )
    from scope_ebpf.results.profile import Frame, Profile, Sample

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(profile: Profile) -> bytes:
    """
    One profile of all samples, and one for each thread in the order of time.

    Weights are nanoseconds. Frames are shared, each function and line once.
    """
    frames: dict[Frame, int] = {}
    threads: dict[str, list[Sample]] = {}
    ordered = sorted(profile.samples, key=lambda sample: sample.time_ns)
    for sample in ordered:
        threads.setdefault(sample.thread, []).append(sample)
    groups = [("all", ordered), *sorted(threads.items())]
    document: SpeedscopeDocument = {
        "$schema": _SCHEMA,
        "exporter": "scope-trace",
        "name": profile.title,
        "activeProfileIndex": 0,
        "profiles": [_profile(name, samples, frames) for name, samples in groups],
        "shared": {"frames": [_frame(frame) for frame in frames]},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _profile(name: str, samples: list[Sample], frames: dict[Frame, int]) -> SpeedscopeProfile:
    stacks = [
        [frames.setdefault(frame, len(frames)) for frame in sample.stack] for sample in samples
    ]
    weights = [sample.weight_ns for sample in samples]
    return {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": stacks,
        "weights": weights,
    }


def _frame(frame: Frame) -> SpeedscopeFrame:
    made: SpeedscopeFrame = {"name": frame.name}
    if frame.file:
        made["file"] = frame.file
    if frame.line is not None:
        made["line"] = frame.line
    return made
