# SPDX-License-Identifier: Apache-2.0
"""
Processes of an unprivileged user that pretend to be BEAMs, and what else a hostile tenant has.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PROGRAMS = Path(__file__).parent / "programs"
NOBODY = pwd.getpwnam("nobody")


def compiled(name: str, folder: Path, *flags: str) -> Path:
    """
    ``programs/NAME.c`` as a program that every user may run.
    """
    made = folder / name
    source = PROGRAMS / f"{name}.c"
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-rdynamic", *flags)
    subprocess.run(["cc", *flags, "-o", made, source, "-lpthread"], check=True)
    made.chmod(0o755)
    return made


def with_section(program: Path, made: Path, name: str, contents: Path) -> Path:
    """
    A copy of *program* called *made* that has a section *name* with these contents.
    """
    subprocess.run(
        ["objcopy", "--remove-section", name, "--add-section", f"{name}={contents}", program, made],
        check=True,
    )
    made.chmod(0o755)
    return made


def as_nobody(*command: str | Path) -> list[str]:
    """
    *command* as the user nobody, without any group or privilege.
    """
    return as_user(NOBODY.pw_uid, *command)


def as_user(user: int, *command: str | Path) -> list[str]:
    """
    *command* as the user of a number, without any group but nobody's and without privilege.
    """
    rights = (f"--reuid={user}", f"--regid={NOBODY.pw_gid}", "--clear-groups")
    return ["setpriv", *rights, "--", *map(str, command)]


@contextlib.contextmanager
def running(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    user: int = NOBODY.pw_uid,
) -> Iterator[subprocess.Popen[str]]:
    """
    *command* as nobody or another *user*, while the block runs; its stdout is a pipe.
    """
    process = subprocess.Popen(
        as_user(user, *command),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
