# SPDX-License-Identifier: Apache-2.0
"""
``install-deps.sh`` on a bare machine, with packages from apt: ``make packages-test`` runs it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine import Machine, machine, root
from tracing import require_root

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "packaging/install-deps.sh"
AS_USER = ("setpriv", "--reuid=1000", "--regid=1000", "--init-groups")


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """
    A Debian with sudo, where user 1000 may use it without a password.
    """
    require_root()
    tmp_path.chmod(0o755)
    shutil.copy(SCRIPT, tmp_path)
    with machine(root("sudo", "adduser"), tmp_path) as made:
        made.run("adduser", "--quiet", "--disabled-password", "--gecos", "", "someone")
        made.path("/etc/sudoers.d/someone").write_text("someone ALL=(ALL) NOPASSWD: ALL\n")
        yield made


def test_a_user_with_sudo_gets_what_is_missing(bare: Machine):
    """
    Without being root the script installs by sudo, starts no service, and leaves no guard behind.
    """
    said = bare.run(*AS_USER, "/mnt/install-deps.sh", "run")
    assert "install-deps: installing libbpf1" in said
    assert said.endswith("install-deps: done\n")
    bare.run("python3", "-c", "import venv, ctypes; ctypes.CDLL('libbpf.so.1')")
    assert not bare.path("/usr/sbin/policy-rc.d").exists()


def test_what_is_there_is_not_asked_for_again(bare: Machine):
    """
    A second call says nothing and needs no rights.
    """
    bare.run("/mnt/install-deps.sh", "run")
    bare.path("/etc/sudoers.d/someone").unlink()
    assert "" == bare.run(*AS_USER, "/mnt/install-deps.sh", "run")


def test_without_rights_it_says_what_is_missing(bare: Machine):
    """
    A user without sudo learns in one line what to have installed.
    """
    bare.path("/usr/bin/sudo").unlink()
    said = bare.run(*AS_USER, "/mnt/install-deps.sh", "run", code=1)
    assert 1 == len(said.splitlines())
    assert said.startswith("install-deps: not root and no sudo; missing are: libbpf1")


def test_a_purpose_that_does_not_exist_is_told(bare: Machine):
    """
    A word that is no purpose is refused before anything is done.
    """
    assert "no such purpose: everything" in bare.run("/mnt/install-deps.sh", "everything", code=1)
