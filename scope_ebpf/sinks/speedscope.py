# SPDX-License-Identifier: Apache-2.0
"""
The file format of speedscope (its published ``file-format-schema.json``), and a page with its
viewer.

The page is one file that loads nothing: its Content-Security-Policy permits the two scripts in it
by their digests, and no request at all. The profile is in it as gzipped bytes in base64, so no name
of a VM is ever markup.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from scope_ebpf.errors import MissingPackageError
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.results.documents.exports import (
        SpeedscopeDocument,
        SpeedscopeFrame,
        SpeedscopeProfile,
    )
    from scope_ebpf.results.profile import Frame, Profile, Sample

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


#: Where the address names a local profile, speedscope makes a function that takes it and asks for a
#: script that calls it. The policy forbids that script; this one calls the function.
_LOADER = """
"use strict";
Object.defineProperty(window, "speedscope", { set(viewer) {
  const profile = document.getElementById("profile");
  queueMicrotask(() => viewer.loadFileFromBase64(profile.dataset.name, profile.textContent));
} });
const asked = new URLSearchParams(location.hash.slice(1));
if (!asked.has("view")) asked.set("view", "left-heavy");
asked.set("localProfilePath", "embedded");
location.replace("#" + asked);
"""
_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
<script id="profile" type="application/octet-stream" data-name="{title}">{profile}</script>
<script>{loader}</script>
</head><body><noscript>The viewer of this profile is a script.</noscript>
<script>{script}</script>
</body></html>
"""
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; font-src data:; img-src data: blob:; "
    "style-src 'unsafe-inline'; script-src"
)


def speedscope(profile: Profile) -> bytes:
    """
    One profile of all samples, and one for each thread in the order of time.

    Weights are nanoseconds. Frames are shared, each function and line once.
    """
    threads: dict[str, list[Sample]] = {}
    ordered = sorted(profile.samples, key=lambda sample: sample.time_ns)
    for sample in ordered:
        threads.setdefault(sample.thread, []).append(sample)
    return document(profile.title, [("all", ordered), *sorted(threads.items())])


def document(title: str, groups: Iterable[tuple[str, list[Sample]]]) -> bytes:
    """A profile for each of *groups*, which have a name; the first is shown first."""
    frames: dict[Frame, int] = {}
    made: SpeedscopeDocument = {
        "$schema": _SCHEMA,
        "exporter": "scope-trace",
        "name": plain(title),
        "activeProfileIndex": 0,
        "profiles": [_profile(name, samples, frames) for name, samples in groups],
        "shared": {"frames": [_frame(frame) for frame in frames]},
    }
    return json.dumps(made, separators=(",", ":")).encode()


def html(profile: Profile) -> bytes:
    """Give the page of a profile; MissingPackageError if this installation has no viewer."""
    return page(profile.title, speedscope(profile))


def page(title: str, profile: bytes) -> bytes:
    """A page of what :func:`document` made; raises as :func:`html`."""
    import base64
    import gzip

    style, script = viewer()
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (_LOADER, script))
    made = _PAGE.format(
        policy=f"{_POLICY} {allowed}",
        title=escape(plain(title), quote=True),
        style=style,
        profile=base64.b64encode(gzip.compress(profile, mtime=0)).decode(),
        loader=_LOADER,
        script=script,
    )
    return made.encode()


def viewer() -> tuple[str, str]:
    """The style and the script of the viewer; MissingPackageError if this installation has none."""
    folder = resources.files("scope_ebpf.sinks").joinpath("viewer")
    try:
        style, script = (folder.joinpath(f"speedscope.{end}").read_bytes() for end in ("css", "js"))
    except OSError:
        raise MissingPackageError(
            "this installation was built without the viewer of flame graphs, speedscope: choose "
            "-o FILE.speedscope.json, which speedscope opens anywhere (in a source tree, "
            "`make viewer` gets it by npm)"
        ) from None
    return style.decode(), script.decode()


def _digest(text: str) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _profile(name: str, samples: list[Sample], frames: dict[Frame, int]) -> SpeedscopeProfile:
    stacks = [
        [frames.setdefault(frame, len(frames)) for frame in sample.stack] for sample in samples
    ]
    weights = [sample.weight_ns for sample in samples]
    return {
        "type": "sampled",
        "name": plain(name),
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": stacks,
        "weights": weights,
    }


def _frame(frame: Frame) -> SpeedscopeFrame:
    made: SpeedscopeFrame = {"name": plain(frame.name)}
    if frame.file:
        made["file"] = plain(frame.file)
    if frame.line is not None:
        made["line"] = frame.line
    return made
