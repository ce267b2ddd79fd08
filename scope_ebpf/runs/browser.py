# SPDX-License-Identifier: Apache-2.0
"""Shows a file that a command has written in the web browser of the user who called it."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from scope_ebpf import output

#: Programs that open a file in the user's browser, the first that there is.
_OPENERS = ("xdg-open", "sensible-browser", "x-www-browser")
#: What a user's session is found by; sudo leaves some of it out.
_SESSION = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "LANG")
_PATH = "/usr/local/bin:/usr/bin:/bin"


def show(path: str) -> str | None:
    """
    Open the page at *path*; the reason why it was not, in words for a user.

    The browser runs as the user who called this, or called sudo. It never runs as root, since the
    page was made of a stranger's names. It is given no file that others may have put there.
    """
    called = output.caller()
    uid = called[0] if called else os.geteuid()
    if uid == 0:
        return "no browser is started as root"
    try:
        return _show(path, uid)
    except KeyError:
        return f"user {uid} is unknown here: there is no entry in passwd"
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"


def _show(path: str, uid: int) -> str | None:
    """As :func:`show`, as user *uid*. OSError; KeyError for another user without an entry."""
    page = Path(os.path.realpath(Path(path).parent, strict=True), Path(path).name)
    if reason := _doubt(page, uid):
        return reason
    environment = _environment(uid)
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & environment.keys():
        return "there is no display here"
    program = next(filter(None, (shutil.which(p, path=environment["PATH"]) for p in _OPENERS)), "")
    if not program:
        return f"there is none of {', '.join(_OPENERS)}"
    return _start([program, page.as_uri()], uid, environment)


def _doubt(page: Path, uid: int) -> str | None:
    """Why *page* may be the file of another user than *uid*; None if it cannot be."""
    found, folder = page.lstat(), page.parent.stat()
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != uid:
        return f"it does not belong to user {uid}, whose browser it would be"
    others = stat.S_IWOTH if _is_private(folder.st_gid, uid) else stat.S_IWOTH | stat.S_IWGRP
    sticky = folder.st_mode & stat.S_ISVTX
    if folder.st_uid not in (0, uid) or (folder.st_mode & others and not sticky):
        return f"others may replace what is in {page.parent}"
    return None


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is the one of that user alone, as many distributions give each user one."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    alone = set(group.gr_mem) <= {user.pw_name}
    return gid == user.pw_gid and group.gr_name == user.pw_name and alone


def _environment(uid: int) -> dict[str, str]:
    """The environment of the browser: our own, or of another user what the session needs."""
    if uid == os.geteuid():
        return {"PATH": _PATH, **os.environ}
    made = {name: os.environ[name] for name in _SESSION if name in os.environ}
    user, runtime = pwd.getpwuid(uid), Path(f"/run/user/{uid}")
    made |= {"PATH": _PATH, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    if runtime.is_dir():
        made["XDG_RUNTIME_DIR"] = str(runtime)
        made["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={runtime}/bus"
        sockets = sorted(runtime.glob("wayland-?"))
        if sockets:
            made.setdefault("WAYLAND_DISPLAY", sockets[0].name)
    return made


def _start(command: list[str], uid: int, environment: dict[str, str]) -> str | None:
    """Start *command* as user *uid* and leave it; the reason if it cannot be started."""
    null = subprocess.DEVNULL
    identity: dict[str, Any] = {}
    if uid != os.geteuid():
        user = pwd.getpwuid(uid)
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        identity = {"user": uid, "group": user.pw_gid, "extra_groups": groups}
    try:
        process = subprocess.Popen(
            command,
            stdin=null,
            stdout=null,
            stderr=null,
            cwd="/",
            env=environment,
            start_new_session=True,
            **identity,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]} cannot be started: {error}"
    process.returncode = 0  # it outlives this command, which does not wait for it
    return None
