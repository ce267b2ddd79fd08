# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pwd
import stat
from typing import TYPE_CHECKING

import pytest
from beams_run import require

from scope_ebpf.runs import browser

if TYPE_CHECKING:
    from pathlib import Path

USER = pwd.getpwnam("nobody")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A page of the user nobody, and a browser that writes who it is and what it was given.
    """
    require(os.geteuid() == 0, "only root can start a program as another user")
    said = tmp_path / "said"
    os.mkfifo(said)
    program = tmp_path / "xdg-open"
    program.write_text(f'#!/bin/sh\necho "$(id -u) $(id -g) $HOME $SECRET $1" >{said}\n')
    program.chmod(0o755)
    page = tmp_path / "a page.html"
    page.write_text("<html>")
    for path in (page, said):
        os.chown(path, USER.pw_uid, USER.pw_gid)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    monkeypatch.setattr(browser, "_PATH", f"{tmp_path}:{browser._PATH}")
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("SECRET", "of root")
    return page


def test_the_browser_runs_as_the_owner_of_the_page(page: Path):
    """
    Root starts it with the user's identity and home, and nothing of root's environment.
    """
    assert browser.show(str(page)) is None
    uid, gid, home, address = (page.parent / "said").read_text().split()
    assert (str(USER.pw_uid), str(USER.pw_gid), USER.pw_dir) == (uid, gid, home)
    assert page.as_uri() == address
    assert "%20" in address


def test_no_browser_is_started_as_root(page: Path):
    """
    A page of root's is not opened, with the reason.
    """
    os.chown(page, 0, 0)
    assert "no browser is started as root" == browser.show(str(page))


def test_without_a_display_nothing_is_started(page: Path, monkeypatch: pytest.MonkeyPatch):
    """
    On a server the reason is that there is no display.
    """
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "there is no display here" == browser.show(str(page))


def test_without_a_browser_the_programs_that_were_looked_for_are_named(
    page: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    The reason names each of them.
    """
    monkeypatch.setattr(browser, "_PATH", "/nonexistent")
    assert "there is none of xdg-open, sensible-browser, x-www-browser" == browser.show(str(page))
