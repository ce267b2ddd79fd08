# SPDX-License-Identifier: Apache-2.0
"""
The machine that ``vagrant up`` makes, as far as it can be made without a hypervisor.

Minutes, and packages from apt: ``make packages-test`` runs it, ``make test`` does not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("packages", "kernel")]

from machine import Machine, machine, only_child, root
from tracing import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROVISION = "/mnt/vagrant/provision.sh"


@pytest.mark.parametrize("provider", ["virtualbox", "libvirt"])
def test_vagrant_understands_the_file(tmp_path: Path, provider: str):
    """
    Vagrant finds nothing wrong; with libvirt, whose plugin is there, the provider's keys included.
    """
    beams_run.require(shutil.which("vagrant"), "vagrant is not installed")
    own = [] if provider == "libvirt" else ["--ignore-provider"]
    environment = {
        **os.environ,
        "VAGRANT_DEFAULT_PROVIDER": provider,
        "VAGRANT_HOME": str(tmp_path),
    }
    folder = tmp_path / "vagrant"
    shutil.copytree(ROOT / "vagrant", folder)
    done = subprocess.run(
        ["vagrant", "validate", *own], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    What the machine sees of this folder, with the packages built.
    """
    require_root()
    folder = tmp_path_factory.mktemp("sources")
    folder.chmod(0o755)
    for name in ("vagrant", "docs", "tests/beams"):
        shutil.copytree(ROOT / name, folder / name)
    command = [sys.executable, str(ROOT / "packaging/build_packages.py")]
    subprocess.run([*command, "--to", str(folder / "dist")], check=True, capture_output=True)
    built = sorted(beams_run.cache().glob("usdt-*"))
    beams_run.require(built, "no BEAM with USDT probes is there; tests/beams/build-usdt.sh")
    shutil.copytree(built[-1], folder / "usdt")
    return folder


@pytest.fixture(scope="module")
def provisioned(sources: Path) -> Iterator[tuple[Machine, str]]:
    """
    A bare Debian on which the script has run, and what it said.
    """
    with machine(root("procps"), sources) as made:
        said = made.run("env", "SCOPE_USDT=/mnt/usdt", PROVISION, "/mnt")
        yield made, said


@contextmanager
def service(where: Machine, *words: str) -> Iterator[None]:
    """
    What systemd would run.
    """
    null = subprocess.DEVNULL
    process = subprocess.Popen(where.command(*words), stdin=null, stdout=null, stderr=null)
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), "")
        yield
        assert process.poll() is None, f"{words} has ended"
        os.kill(only_child(process.pid), signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def test_it_says_what_it_could_not_do(provisioned: tuple[Machine, str]):
    """
    Without Grafana and without systemd it goes on to its end, and says so of each.
    """
    _, said = provisioned
    assert "no Grafana: SCOPE_GRAFANA does not say where it comes from" in said
    for name in ("scope-usdt-node", "rabbitmq-server", "scope-ebpfd prometheus"):
        assert f"no systemd here, so not started: {name}\n" in said
    assert said.endswith("provision: done; nothing was started\n")


def test_prometheus_sees_the_usdt_node(provisioned: tuple[Machine, str]):
    """
    The services as they are set up work together: a node with USDT probes is in Prometheus.
    """
    where, _ = provisioned
    with (
        service(where, "/usr/local/bin/scope-usdt-node"),
        service(where, "scope-ebpfd"),
        service(
            where,
            *("prometheus", "--config.file=/etc/prometheus/prometheus.yml"),
            *("--storage.tsdb.path=/run/prometheus", "--web.listen-address=127.0.0.1:19090"),
        ),
    ):
        wait_until(lambda: "usdt" in where.run("scope-trace", "list"), "a USDT node")
        query = ("promtool", "query", "instant", "http://127.0.0.1:19090")

        def series() -> str:
            try:
                return where.run(*query, "beam_target_info")
            except AssertionError:
                return ""  # Prometheus is not there yet

        wait_until(lambda: "beam_target_info{" in series(), "the node in Prometheus")
        rules = where.run(*query, "count(ALERTS or vector(0))")
        assert "=> " in rules


def test_grafana_would_find_everything(provisioned: tuple[Machine, str]):
    """
    Datasource and dashboards lie where Grafana reads them when it starts, each board whole.
    """
    where, _ = provisioned
    folder = where.path("/etc/grafana/provisioning")
    assert "/usr/share/scope-ebpf/dashboards" in (folder / "dashboards/scope-ebpf.yaml").read_text()
    assert "http://127.0.0.1:9090" in (folder / "datasources/scope-ebpf.yaml").read_text()
    boards = list(where.path("/usr/share/scope-ebpf/dashboards").glob("*.json"))
    assert sorted(p.name for p in (ROOT / "dashboards").glob("*.json")) == sorted(
        p.name for p in boards
    )
    assert all(json.loads(board.read_text())["panels"] for board in boards)


def test_rabbitmq_has_its_plugins(provisioned: tuple[Machine, str]):
    """
    RabbitMQ will serve its own metrics beside ours.
    """
    where, _ = provisioned
    enabled = where.path("/etc/rabbitmq/enabled_plugins").read_text()
    assert {"rabbitmq_management", "rabbitmq_prometheus"} <= set(enabled.strip("[]. \n").split(","))


def test_it_can_run_again(provisioned: tuple[Machine, str]):
    """
    A second run changes nothing and ends well; Grafana that cannot be had is one line.
    """
    where, _ = provisioned
    said = where.run(
        *("env", "SCOPE_USDT=/mnt/usdt", "SCOPE_GRAFANA=/nowhere/grafana.deb", PROVISION, "/mnt")
    )
    assert "going on without Grafana" in said
    assert "done" in said


def test_without_a_package_it_says_what_to_do(sources: Path):
    """
    Sources that were not built are told so at once.
    """
    with machine(root("procps"), sources) as made:
        said = made.run(PROVISION, "/mnt/vagrant", code=1)
    assert "no package in /mnt/vagrant/dist; `make packages` builds it" in said
