# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pwd
import stat
from types import SimpleNamespace
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
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:  # those that pytest made
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    monkeypatch.setattr(browser, "_PATH", f"{tmp_path}:{browser._PATH}")
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("SUDO_UID", str(USER.pw_uid))
    monkeypatch.setenv("SUDO_GID", str(USER.pw_gid))
    monkeypatch.setenv("SECRET", "of root")
    return page


def test_the_browser_runs_as_the_user_who_called(page: Path):
    """
    Root starts it with the user's identity and home, and nothing of root's environment.
    """
    assert browser.show(str(page)) is None
    uid, gid, home, address = (page.parent / "said").read_text().split()
    assert (str(USER.pw_uid), str(USER.pw_gid), USER.pw_dir) == (uid, gid, home)
    assert page.as_uri() == address
    assert "%20" in address


def test_no_browser_is_started_as_root(page: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A page is not opened where nobody called sudo, no matter whose it is, with the reason.
    """
    monkeypatch.delenv("SUDO_UID")
    assert "no browser is started as root" == browser.show(str(page))
    os.chown(page, 0, 0)
    assert "no browser is started as root" == browser.show(str(page))


def test_a_page_that_went_is_a_reason(page: Path):
    """
    So is a folder that went.
    """
    page.unlink()
    assert f"{page}: No such file or directory" == browser.show(str(page))
    missing = page / "x.html"
    assert f"{page}: No such file or directory" == browser.show(str(missing))


def test_a_user_without_an_entry_is_a_reason(page: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Of a number alone, as containers give users, the home and the groups are not known.
    """
    monkeypatch.setenv("SUDO_UID", "1234567")
    os.chown(page, 1234567, 0)
    expected = "user 1234567 is unknown here: there is no entry in passwd"
    assert expected == browser.show(str(page))


@pytest.mark.parametrize("kind", ["another's", "root's", "link", "folder"])
def test_no_file_of_another_user_is_opened(page: Path, kind: str):
    """
    What a stranger has put in the place of the page is not, nor what no page can be.
    """
    if kind in ("another's", "root's"):
        os.chown(page, 0 if kind == "root's" else USER.pw_uid - 1, 0)
        assert "it does not belong to user" in browser.show(str(page))
        return
    page.unlink()
    page.mkdir() if kind == "folder" else page.symlink_to("said")
    os.lchown(page, USER.pw_uid, USER.pw_gid)
    assert "it is no regular file" == browser.show(str(page))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "may"),
    [
        (0o755, 0, 0, True),
        (0o777, 0, 0, False),
        (0o1777, 0, 0, True),
        (0o1777, USER.pw_uid - 1, 0, False),
        (0o775, USER.pw_uid, 0, False),
        (0o775, USER.pw_uid, 4711, True),  # the user's own group
        (0o777, USER.pw_uid, 4711, False),
    ],
)
def test_a_page_is_not_opened_where_others_may_replace_it(  # noqa: PLR0917
    page: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, may: bool
):
    """
    Its folder must be the user's or root's, and others must not write there, or not replace.
    """
    user = SimpleNamespace(pw_name="shop", pw_gid=4711)
    monkeypatch.setattr(browser.pwd, "getpwuid", lambda _: user)
    monkeypatch.setattr(
        browser.grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="shop", gr_mem=["shop"])
    )
    monkeypatch.setattr(browser, "_environment", lambda _: {"PATH": "/", "DISPLAY": ""})
    monkeypatch.setattr(browser, "_OPENERS", ("nothing",))
    page.parent.chmod(mode)
    os.chown(page.parent, owner, group)
    expected = "there is none of nothing" if may else f"others may replace what is in {page.parent}"
    assert expected == browser.show(str(page))


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
