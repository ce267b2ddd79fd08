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

from machine import Machine, machine, network, only_child, root
from tracing import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROVISION = "/mnt/vagrant/provision.sh"
#: Where a port that virtualbox forwards arrives in the machine.
ADDRESS = "10.0.2.15"
NODE = "/usr/local/bin/scope-usdt-node"


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


@pytest.fixture(scope="module")
def running(provisioned: tuple[Machine, str]) -> Iterator[Machine]:
    """
    The same Debian on a network of its own, for services that listen on every address.
    """
    where, _ = provisioned
    with network(ADDRESS) as own:
        yield where.on(own)


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


def asked(where: Machine, *words: str) -> str:
    """
    What a command says, or nothing while what it asks is not there yet.
    """
    try:
        return where.run(*words)
    except AssertionError:
        return ""


def test_prometheus_sees_the_usdt_node(running: Machine):
    """
    The services as they are set up work together: a node with USDT probes is in Prometheus.

    Daemon and Prometheus answer where forwarded ports arrive.
    """
    with (
        service(running, NODE),
        service(running, "scope-ebpfd"),
        service(
            running,
            *("prometheus", "--config.file=/etc/prometheus/prometheus.yml"),
            "--storage.tsdb.path=/run/prometheus",
        ),
    ):
        wait_until(lambda: "usdt" in running.run("scope-trace", "list"), "a USDT node")
        page = ("curl", "-sf", f"http://{ADDRESS}:9568/healthz")
        wait_until(lambda: asked(running, *page), "the daemon at the machine's own address")
        query = ("promtool", "query", "instant", f"http://{ADDRESS}:9090")
        wait_until(
            lambda: "beam_target_info{" in asked(running, *query, "beam_target_info"),
            "the node in Prometheus",
        )
        rules = running.run(*query, "count(ALERTS or vector(0))")
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


def test_rabbitmq_lets_its_guest_in(running: Machine):
    """
    Who comes by a forwarded port can log in as guest, whom RabbitMQ refuses elsewhere.
    """
    words = (
        *("setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups"),
        *("env", "-C", "/var/lib/rabbitmq", "HOME=/var/lib/rabbitmq", "RUNNING_UNDER_SYSTEMD=true"),
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
    )
    who = ("curl", "-s", "-u", "guest:guest", f"http://{ADDRESS}:15672/api/whoami")
    with service(running, *words):
        said = wait_until(lambda: asked(running, *who), "RabbitMQ at the machine's own address")
    assert "guest" == json.loads(said).get("name"), said


def test_it_can_run_again(provisioned: tuple[Machine, str], running: Machine):
    """
    A second run beside the services ends well, and leaves a config that a user has changed.

    Grafana that cannot be had is one line.
    """
    where, _ = provisioned
    config = where.path("/etc/scope-ebpf/config.toml")
    config.write_text(changed := config.read_text() + "top = 7\n")
    again = ("env", "SCOPE_USDT=/mnt/usdt", "SCOPE_GRAFANA=/nowhere/grafana.deb", PROVISION, "/mnt")
    with service(running, NODE), service(running, "scope-ebpfd"):
        wait_until(lambda: "usdt" in running.run("scope-trace", "list"), "a USDT node")
        said = where.run(*again)
    assert "going on without Grafana" in said
    assert "done" in said
    assert changed == config.read_text()
    assert 1 == where.path("/etc/rabbitmq/rabbitmq.conf").read_text().count("loopback_users")


def test_without_a_package_it_says_what_to_do(sources: Path):
    """
    Sources that were not built are named at once.
    """
    with machine(root("procps"), sources) as made:
        said = made.run(PROVISION, "/mnt/vagrant", code=1)
    assert "no package in /mnt/vagrant/dist; `make packages` builds it" in said
