# SPDX-License-Identifier: Apache-2.0
"""
ejabberd as the distribution ships it, on loopback, in a folder of its own.

It runs as the user ejabberd, so its memory belongs to another user than the observer's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apps.app import App, free_ports, write_cookie
from beams_run import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_USER: Final = "ejabberd"
PASSWORD: Final = "planted"


@contextmanager
def ejabberd(
    users: Sequence[str] = ("alice", "bob"), home: Path | None = None, otp: Path | None = None
) -> Iterator[App]:
    """
    A running server with the accounts *users* at localhost, password :data:`PASSWORD`.

    *home* is a folder with a copy of ejabberd's folders, *otp* a copy of OTP to run.

    Its ``ports`` are ``c2s`` (XMPP without TLS) and ``http`` (with /api). Starts in three seconds.
    """
    require(shutil.which("ejabberdctl"), "ejabberd is not installed")
    require(os.geteuid() == 0, "ejabberd changes its user, which takes root")
    with tempfile.TemporaryDirectory(prefix="scope-ejabberd-") as name:
        app = _start(Path(name), home, otp)
        try:
            app.wait_until("lists:keymember(ejabberd, 1, application:which_applications())")
            app.pid = int(app.eval("list_to_integer(os:getpid())"))
            for user in users:
                register = f'ejabberd_auth:try_register(<<"{user}">>, <<"localhost">>, '
                app.eval(f'ok = {register}<<"{PASSWORD}">>)')
            yield app
        finally:
            app.stop()


def _start(folder: Path, home: Path | None, otp: Path | None) -> App:
    names = ("c2s", "http", "dist")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    for part in ("spool", "log", "config"):
        (folder / part).mkdir()
    (folder / "config/ejabberd.yml").write_text(_configuration(ports))
    (folder / "config/inetrc").write_text('{lookup, ["file", "native"]}.\n')
    (folder / "config/ctl.cfg").write_text(_control(folder, ports))
    write_cookie(folder / "spool")
    _give(folder)
    with (folder / "console.log").open("wb") as log:
        process = subprocess.Popen(
            [_program(folder, home, otp), *_folders(folder), "foreground"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return App(process, folder, ports["dist"], ports)


def _folders(folder: Path) -> list[str]:
    return [
        *("--config-dir", f"{folder}/config", "--ctl-config", f"{folder}/config/ctl.cfg"),
        *("--config", f"{folder}/config/ejabberd.yml"),
        *("--logs", f"{folder}/log", "--spool", f"{folder}/spool"),
    ]


def _give(folder: Path) -> None:
    account = pwd.getpwnam(_USER)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)


def _program(folder: Path, home: Path | None, otp: Path | None) -> Path:
    """
    The script that starts it, changed so that it runs what is in *home* and *otp*.
    """
    installed = Path(shutil.which("ejabberdctl") or "")
    if not (home or otp):
        return installed
    text = installed.read_text()
    for found, wanted in (
        ("ERL_LIBS='/usr/lib/x86_64-linux-gnu'", home and f"ERL_LIBS='{home}'"),
        ('ERL="/usr/bin/erl"', otp and f'ERL="{otp}/bin/erl"'),
    ):
        if wanted:
            require(found in text, f"{installed} has no {found}")
            text = text.replace(found, wanted)
    program = folder / "ejabberdctl"
    program.write_text(text)
    program.chmod(0o755)
    return program


def _control(folder: Path, ports: dict[str, int]) -> str:
    return f"""\
ERLANG_NODE=ejabberd@localhost
INET_DIST_INTERFACE=127.0.0.1
ERL_DIST_PORT={ports["dist"]}
ERL_OPTIONS="-setcookie planted"
EJABBERD_PID_PATH={folder}/ejabberd.pid
HOME={folder}/spool
"""


def _configuration(ports: dict[str, int]) -> str:
    return f"""\
hosts: [localhost]
loglevel: warning
auth_password_format: plain
listen:
  - port: {ports["c2s"]}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    access: all
    shaper: none
  - port: {ports["http"]}
    ip: "127.0.0.1"
    module: ejabberd_http
    request_handlers:
      /api: mod_http_api
api_permissions:
  "from this machine":
    who: [ip: 127.0.0.1/8]
    what: "*"
modules:
  mod_http_api: {{}}
  mod_admin_extra: {{}}
  mod_roster: {{}}
"""
