# SPDX-License-Identifier: Apache-2.0
"""The page at ``/``: what is observed, how, and at what cost. No script, no external file."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from scope_ebpf.daemon.loop import Daemon
    from scope_ebpf.metrics.reading import Reading

_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 2em; max-width: 60em }
table { border-collapse: collapse; margin: .5em 0 1.5em }
th, td { text-align: left; padding: .2em .8em; border-bottom: 1px solid #ccc }
td.n { text-align: right } .off { color: #a00 } .windows { color: #a60 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: The content security policy: a browser may only show the page in that style.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def head(title: str) -> str:
    """The beginning of a page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>{text(title)}</title><style>{_STYLE}</style></head><body><h1>scope-ebpf</h1>
<p><a href="/metrics">metrics</a> &middot; <a href="/healthz">health</a> &middot;
<a href="/readyz">readiness</a></p>
"""


def page(daemon: Daemon) -> str:
    """The page of this moment, as HTML."""
    refused = daemon.targets.admission.refused
    readings = [watch.reading for watch in daemon.targets.watches]
    parts = [head("scope-ebpf")]
    parts.append(f"<p>{len(readings)} observed, {len(refused)} refused.</p>")
    parts += [_target(reading) for reading in readings]
    if refused:
        rows = "".join(
            f"<tr><td>{pid}</td><td>{text(why)}</td></tr>" for pid, why in list(refused.items())
        )
        parts.append(f"<h2>refused</h2><table><tr><th>pid</th><th>why</th></tr>{rows}</table>")
    parts.append("</body></html>")
    return "\n".join(parts)


def _target(reading: Reading) -> str:
    info, hooks = reading.info, reading.hooks
    rows = "".join(
        f'<tr><td>{hook}</td><td class="{event.mode}">{event.mode}</td><td>{event.via}</td>'
        f'<td class="n">{event.sampling_ratio:.2%}</td><td>{text(event.reason)}</td></tr>'
        for hook, event in reading.events.items()
    )
    return (
        f'<h2><a href="/vm/{info["pid"]}">{text(reading.node[:255])}</a></h2>'
        f"<p>pid {info['pid']}, user {info['uid']}, cgroup {text(info['cgroup'][:255])}, "
        f"OTP {text(info['otp_release'])}, {info['flavor']}, "
        f"{reading.schedulers} schedulers. Hooks take {hooks.overhead:.3%} of its CPU; the "
        f"budget is {hooks.budget:.2%}.</p>"
        "<table><tr><th>event</th><th>mode</th><th>via</th><th>counted</th><th>note</th></tr>"
        f"{rows}</table>"
    )


def text(said: str) -> str:
    """*said* by a VM or a host, escaped for a page."""
    return escape(plain(said))
