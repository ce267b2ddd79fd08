# SPDX-License-Identifier: Apache-2.0
"""
A flame graph in one file: an SVG, or an HTML page around it. It loads nothing from outside.

All boxes are drawn, so the file shows something without its script, too; the script zooms (click)
and searches. Processes are at the top and the functions they called beneath.
"""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from scope_ebpf.results.profile import tree
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from scope_ebpf.results.profile import Node, Profile

_WIDTH, _LEFT, _ROW, _TOP = 1180, 10, 17, 46
_CHARACTER = 6.6
#: Boxes that are narrower than this share of the whole are left out, and counted.
_NARROWEST = 1 / 20000
#: No stack is drawn higher.
_DEEPEST = 700
_COLOURS = {
    "process": "#9fb8d8",
    "thread": "#b9bdc4",
    "erlang": "#f0a35e",
    "native": "#e0c95a",
    "kernel": "#d98880",
    "wait": "#8fbf9f",
}
_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#111}"
    "g.box{cursor:pointer}g.box:hover rect{stroke:#222}g.hit rect{fill:#c05bd6}"
    "#search,#reset{cursor:pointer;text-decoration:underline}"
)
#: The page runs its own script and loads nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def svg(profile: Profile) -> bytes:
    """Give the graph as an SVG document."""
    search = f'<text id="search" x="{_LEFT + 1070}" y="18">Search</text>'
    return ('<?xml version="1.0" encoding="utf-8"?>\n' + _graph(profile, search)).encode()


def html(profile: Profile) -> bytes:
    """Give the graph as an HTML page with a field to search in."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_safe(profile.title)}</title></head>\n"
        '<body style="margin:1em;font-family:sans-serif">\n'
        '<p><label>Search <input id="field" size="40" placeholder="a regular expression">'
        "</label></p>\n"
        f"{_graph(profile, '')}</body></html>\n"
    ).encode()


def _graph(profile: Profile, search: str) -> str:
    root = tree(profile)
    whole = max(1, root.weight)
    nodes = list(root.walk())
    drawn = [item for item in nodes if item[2].weight >= whole * _NARROWEST and item[0] < _DEEPEST]
    height = _TOP + (max((depth for depth, _, _ in drawn), default=0) + 2) * _ROW
    boxes = "\n".join(_box(item, whole) for item in drawn)
    left_out = len(nodes) - len(drawn)
    note = f"; {left_out:,} frames too narrow or too deep to draw" if left_out else ""
    script = resources.files("scope_ebpf.sinks").joinpath("flamegraph.js").read_text("utf-8")
    subtitle = (
        f"OTP {profile.target['otp_release']}, pid {profile.target['pid']}: "
        f"{len(profile.samples):,} samples, {root.weight / 1e9:.2f} s{note}"
    )
    width = _WIDTH + 2 * _LEFT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n'
        f'<style>{_STYLE}</style>\n<rect width="100%" height="100%" fill="#fdfdfb"/>\n'
        f'<text x="{_LEFT}" y="18" font-weight="bold">{_safe(profile.title)}</text>\n'
        f'<text x="{_LEFT}" y="36">{_safe(subtitle)}</text>\n'
        f'<text id="status" x="{_LEFT + 560}" y="36"></text>\n'
        f'<text id="reset" x="{_LEFT + 980}" y="18">Reset zoom</text>\n{search}\n'
        f"{boxes}\n<script>//<![CDATA[\n{script}//]]></script>\n</svg>\n"
    )


def _box(item: tuple[int, int, Node], whole: int) -> str:
    depth, start, node = item
    x, share = start / whole, node.weight / whole
    left, wide = _LEFT + x * _WIDTH, share * _WIDTH
    y = _TOP + depth * _ROW
    name = plain(node.frame.name)
    file_line = f"\n{node.frame.file}" if node.frame.file else ""
    title = f"{name} ({100 * share:.2f} %, {node.weight / 1e6:,.0f} ms){file_line}"
    room = int((wide - 6) / _CHARACTER)
    shown = "" if room < 3 else name if len(name) <= room else name[: room - 2] + ".."
    return (
        f'<g class="box" data-x="{x:.8f}" data-w="{share:.8f}" data-d="{depth}">'
        f"<title>{_safe(title, lines=True)}</title>"
        f'<rect x="{left:.2f}" y="{y}" width="{max(wide - 0.3, 0.3):.2f}" height="{_ROW - 1}" '
        f'rx="1" fill="{_COLOURS[node.frame.kind]}"/>'
        f'<text x="{left + 3:.2f}" y="{y + 12}" data-name="{_safe(name)}">{_safe(shown)}</text></g>'
    )


def _safe(text: str, *, lines: bool = False) -> str:
    """Text of a VM as markup takes it: nothing of it is a tag, a quote or a control character."""
    if lines:
        return "\n".join(_safe(line) for line in text.split("\n"))
    return escape(plain(text), quote=True)
