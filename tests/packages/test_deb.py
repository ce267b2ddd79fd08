# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from machine import Machine, machine, only_child, root
from profile_fixtures import profile
from tracing import Run, require_root, wait_until

from scope_ebpf.cli.main import COMMANDS
from scope_ebpf.sinks.pprof import pprof

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A bare Debian is made once, of packages that are fetched.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONFIG = "/etc/scope-ebpf/config.toml"
#: What apt would do with a conffile that a person has changed, when nobody is there to be asked.
KEEP = ("--force-confdef", "--force-confold")


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder with the deb and the rpm of these sources, and the deb of an upgrade.
    """
    require_root()
    folder = tmp_path_factory.mktemp("packages")
    folder.chmod(0o755)
    output(sys.executable, str(ROOT / "packaging/build_packages.py"), "--to", str(folder))
    upgrade(folder / f"scope-ebpf_{VERSION}-1_amd64.deb", folder)
    return folder


def upgrade(deb: Path, folder: Path) -> None:
    """
    The same package with a higher version and another default config.
    """
    tree = folder / "tree"
    output("dpkg-deb", "-R", str(deb), str(tree))
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {VERSION}-1", "Version: 99-1"))
    config = tree / CONFIG.lstrip("/")
    config.write_text(config.read_text() + "# new in 99\n")
    output("dpkg-deb", "--root-owner-group", "-b", str(tree), str(folder / "upgrade.deb"))
    shutil.rmtree(tree)


@pytest.fixture(scope="module")
def deb(packages: Path) -> Path:
    return packages / f"scope-ebpf_{VERSION}-1_amd64.deb"


def bare_debian(deb: Path, suite: str) -> Path:
    """
    Debian with exactly what the deb says that it depends on, and an Erlang to look at.
    """
    depends = output("dpkg-deb", "-f", str(deb), "Depends")
    names = re.findall(r"(?:^|, )([a-z0-9.+-]+)", depends)
    return root("erlang-base", *names, suite=suite)


@pytest.fixture(scope="module")
def bare(deb: Path) -> Path:
    return bare_debian(deb, "bookworm")


@pytest.fixture
def fresh(packages: Path, bare: Path) -> Iterator[Machine]:
    """
    A machine on which nothing was installed yet.
    """
    with machine(bare, packages) as made:
        yield made


@pytest.fixture(scope="module")
def installed(packages: Path, bare: Path, deb: Path) -> Iterator[Machine]:
    with machine(bare, packages) as made:
        made.run("dpkg", "-i", f"/mnt/{deb.name}")
        yield made


@contextmanager
def planted(where: Machine) -> Iterator[beams_run.Beam]:
    """
    A node in the machine that plants events on command.
    """
    modules = where.path("/tmp/modules")
    shutil.copytree(beams_run.compiled("stock25"), modules, dirs_exist_ok=True)
    pipe = subprocess.PIPE
    erl = ("erl", "-noinput", "-pa", "/tmp/modules", "-s", "planted")
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(where.command(*erl), stdin=pipe, stdout=pipe, stderr=errors)
        beam = beams_run.Beam(process, errors, nested=True)
        try:
            beam.expect("ready")
            yield beam
        finally:
            beam.stop()


def only_beam(where: Machine, release: str = "25") -> int:
    """
    The pid in the machine of the only node there.
    """
    (beam,) = json.loads(where.run("scope-trace", "list", "--format", "json"))["beams"]
    assert beam["otp_release"] == release
    return beam["pid"]


def test_it_installs_with_nothing_but_what_it_depends_on(fresh: Machine, deb: Path):
    """
    dpkg configures the package on a bare Debian 12, every file as packed, and starts no daemon.
    """
    said = fresh.run("dpkg", "-i", f"/mnt/{deb.name}")
    assert "the daemon is not started by itself" in said
    assert "installed" == fresh.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "scope-ebpf")
    assert "" == fresh.run("dpkg", "--verify", "scope-ebpf")
    assert "scope-ebpfd" not in fresh.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def test_the_commands_say_their_version(installed: Machine):
    """
    Both entry points find the code, its metadata and the distribution's libraries.
    """
    assert f"scope-trace {VERSION}\n" == installed.run("scope-trace", "--version")
    assert f"scope-ebpfd {VERSION}\n" == installed.run("scope-ebpfd", "--version")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(installed: Machine, command: str):
    """
    Every command can be imported there, and its help and its man page are there.
    """
    assert installed.run("scope-trace", command, "--help").startswith("usage: scope-trace")
    page = "scope-trace" if command == "trace" else f"scope-trace-{command}"
    assert installed.path(f"/usr/share/man/man1/{page}.1.gz").exists()


def test_the_daemon_has_its_pages(installed: Machine):
    """
    The daemon, its config, what Prometheus takes and what shells complete are there.
    """
    for name in (
        "man/man8/scope-ebpfd.8.gz",
        "man/man5/scope-ebpf-config.5.gz",
        "scope-ebpf/rules.yml",
        "scope-ebpf/prometheus.yml",
        "bash-completion/completions/scope-trace",
        "bash-completion/completions/scope-ebpfd",
        "zsh/vendor-completions/_scope-trace",
        "fish/vendor_completions.d/scope-trace.fish",
    ):
        assert installed.path(f"/usr/share/{name}").exists(), name
    boards = {path.name for path in installed.path("/usr/share/scope-ebpf/dashboards").iterdir()}
    assert {path.name for path in (ROOT / "dashboards").glob("*.json")} == boards


def test_it_sees_a_node_there(installed: Machine):
    """
    A trace from within, of a node within, counts what was planted: 23 spawns.
    """
    with planted(installed) as beam:
        pid = str(only_beam(installed))
        words = ("scope-trace", "--pid", pid, "--duration", "0", "--format", "json")
        run = Run(installed.command(*words), None)
        try:
            run.wait_for_counting()
            beam.plant("spawns 23")
            os.kill(only_child(run.pid), signal.SIGINT)
            document = run.wait().document
        finally:
            run.close()
    assert 23 == document["events"]["spawn"]["count"]
    assert 0 == document["lost_total"]


def counted_and_exported(where: Machine, release: str) -> None:
    """
    Count 23 planted spawns within, record them, and write what needs more than Python.
    """
    with planted(where) as beam:
        pid = str(only_beam(where, release))
        words = (
            "record",
            "--pid",
            pid,
            "--duration",
            "0",
            "--max-cost",
            "100%",
            "-o",
            "/tmp/r.scope",
        )
        run = Run(where.command("scope-trace", *words), None)
        try:
            run.wait_for_counting()
            beam.plant("spawns 23")
            os.kill(only_child(run.pid), signal.SIGINT)
            outcome = run.wait()
        finally:
            run.close()
        assert 0 == outcome.code, outcome.errors
    summary = json.loads(where.run("scope-trace", "summary", "/tmp/r.scope", "--format", "json"))
    assert 23 == summary["events"]["spawn"]["count"]
    where.run("scope-trace", "export", "/tmp/r.scope", "--to", "perfetto", "-o", "/tmp/r.pftrace")
    assert b"spawn" in where.path("/tmp/r.pftrace").read_bytes()
    # A profile itself needs the pids of the host.
    where.path("/tmp/a.folded").write_text("shop;shop:price/2 (shop.erl:40) 23000\n")
    where.path("/tmp/b.pb.gz").write_bytes(pprof(profile()))
    files = ("/tmp/a.folded", "/tmp/b.pb.gz")
    where.run("scope-trace", "profile", "--diff", *files, "-o", "/tmp/p.html")
    assert b'<script id="profile"' in where.path("/tmp/p.html").read_bytes()


def test_its_exports_and_pages_work_there(installed: Machine):
    """
    With nothing but its dependencies the deb writes timelines, pages of profiles and pprof.
    """
    counted_and_exported(installed, "25")


def test_it_installs_and_works_on_debian_13(packages: Path, deb: Path):
    """
    The same file is configured by dpkg of the next Debian, whose Python, libbpf and OTP are newer.
    """
    with machine(bare_debian(deb, "trixie"), packages) as made:
        made.run("dpkg", "-i", f"/mnt/{deb.name}")
        assert f"scope-trace {VERSION}\n" == made.run("scope-trace", "--version")
        counted_and_exported(made, "27")


def test_the_wheel_names_its_platform_and_works_in_a_clean_environment(tmp_path: Path):
    """
    pip takes it on this platform alone; it has the viewer, the objects, and the licence of each.
    """
    require_root()
    (wheel,) = (ROOT / "build/wheel").glob("*.whl")
    assert f"scope_ebpf-{VERSION}-py3-none-linux_{os.uname().machine}.whl" == wheel.name
    output(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "-qq", "install", "--no-deps"]
    output(*pip, str(wheel))
    # Its dependencies are those of this environment.
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(ours))
    listed = output(str(python), "-I", "-m", "scope_ebpf.cli.main", "doctor")
    assert "scope-trace" in output(str(tmp_path / "venv/bin/scope-trace"), "--version")
    assert listed
    viewer = site / "scope_ebpf/sinks/viewer"
    assert {"LICENSE", "LICENSE.font.md", "speedscope.js"} <= {p.name for p in viewer.iterdir()}
    assert (site / "scope_ebpf/kernel/source/probes/COPYING").exists()


def test_its_daemon_is_scraped_there(installed: Machine):
    """
    The installed daemon finds a node by itself, serves its figures, and ends on SIGTERM.
    """
    port = beams_run.free_port()
    with planted(installed):
        daemon = Run(installed.command("scope-ebpfd", "--listen", f"127.0.0.1:{port}"), None)
        try:

            def page() -> str:
                assert daemon.process.poll() is None, daemon.wait().errors
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                        return answer.read().decode()
                except OSError:
                    return ""

            wait_until(lambda: "beam_target_info{" in page(), "a node among the metrics")
            os.kill(only_child(daemon.pid), signal.SIGTERM)
            outcome = daemon.wait()
        finally:
            daemon.close()
    assert 0 == outcome.code, outcome.errors


def test_a_config_that_nobody_changed_follows_the_package(fresh: Machine, deb: Path):
    """
    An upgrade brings its config where the old one is as it came.
    """
    fresh.run("dpkg", "-i", f"/mnt/{deb.name}")
    assert "640 root" == fresh.run("stat", "-c", "%a %U", CONFIG).strip()
    fresh.run("dpkg", *KEEP, "-i", "/mnt/upgrade.deb")
    assert "# new in 99" in fresh.path(CONFIG).read_text()


def test_a_config_that_was_changed_survives(fresh: Machine, deb: Path):
    """
    An upgrade and a removal leave a person's config alone; only a purge takes it.
    """
    fresh.run("dpkg", "-i", f"/mnt/{deb.name}")
    changed = fresh.path(CONFIG)
    changed.write_text('budget = "0.5%"\n')
    fresh.run("dpkg", *KEEP, "-i", "/mnt/upgrade.deb")
    assert 'budget = "0.5%"\n' == changed.read_text()
    assert "# new in 99" in fresh.path(f"{CONFIG}.dpkg-dist").read_text()
    fresh.run("dpkg", "--remove", "scope-ebpf")
    assert 'budget = "0.5%"\n' == changed.read_text()
    fresh.run("dpkg", "--purge", "scope-ebpf")
    assert not changed.parent.exists()


def test_a_removal_leaves_nothing_but_the_config(fresh: Machine, deb: Path):
    """
    No file of ours stays, nor bytecode that Python wrote beside them; a purge takes what it kept.
    """
    fresh.run("dpkg", "-i", f"/mnt/{deb.name}")
    fresh.run("scope-trace", "list")
    state, cache = "/var/lib/scope-ebpf", "/var/cache/scope-ebpf"
    fresh.run("mkdir", state, cache)
    fresh.run("touch", f"{state}/memory-0123456789ab-23-5.json", f"{cache}/functions")
    assert list(fresh.path("/usr/lib/scope-ebpf/scope_ebpf/__pycache__").iterdir())
    fresh.run("dpkg", "--remove", "scope-ebpf")
    left = fresh.run("find", "/etc", "/usr", "/var/lib/systemd", "-path", "*scope-ebpf*")
    assert ["/etc/scope-ebpf", CONFIG] == sorted(left.split())
    assert fresh.path(f"{state}/memory-0123456789ab-23-5.json").exists()
    fresh.run("dpkg", "--purge", "scope-ebpf")
    assert "" == remains(fresh)


def remains(where: Machine) -> str:
    """
    Paths of ours that there are, but for what dpkg itself keeps of packages.
    """
    own = ("-path", "/var/lib/dpkg", "-prune", "-o")
    return where.run("find", "/etc", "/usr", "/var", *own, "-path", "*scope-ebpf*", "-print")


def test_a_removal_of_the_rpm_leaves_no_snapshots(fresh: Machine, packages: Path):
    """
    rpm has no purge, so what it runs at the end takes snapshots, but not references; an upgrade
    takes nothing.
    """
    rpm = str(packages / f"scope-ebpf-{VERSION}-1.x86_64.rpm")
    script = fresh.path("/tmp/postun")
    script.write_text(output("rpm", "-qp", "--qf", "%{POSTUN}", rpm))
    state, cache = "/var/lib/scope-ebpf", "/var/cache/scope-ebpf"
    kept, reference = f"{state}/memory-0123456789ab-23-5.json", f"{state}/references"
    fresh.run("mkdir", "-p", reference, cache)
    fresh.run("touch", kept)
    fresh.run("sh", "/tmp/postun", "1")
    assert {state, kept, reference, cache} == set(remains(fresh).split())
    fresh.run("sh", "/tmp/postun", "0")
    assert {state, reference} == set(remains(fresh).split())
    fresh.run("rmdir", reference)
    fresh.run("sh", "/tmp/postun", "0")
    assert "" == remains(fresh)


def test_the_rpm_has_the_same_files(packages: Path, deb: Path):
    """
    What one package has the other has too, and the rpm's digests are right.
    """
    rpm = str(packages / f"scope-ebpf-{VERSION}-1.x86_64.rpm")
    of_deb = {
        line.split(maxsplit=5)[5].removeprefix(".")
        for line in output("dpkg-deb", "-c", str(deb)).splitlines()
        if not line.startswith("d")
    }
    of_rpm = set(
        output("rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", rpm).splitlines()
    )
    assert of_deb == {line.split()[1] for line in of_rpm if not line.startswith("d")}
    assert "digests OK" in output("rpm", "--checksig", rpm)
    assert CONFIG == output("rpm", "-qpc", rpm).strip()
    assert "python3dist(numpy)" in output("rpm", "-qp", "--requires", rpm)


def test_the_programs_come_with_their_licence_and_source(deb: Path, tmp_path: Path):
    """
    The deb, which has the same files as the rpm and holds the wheel, carries the text of the GPL
    and the source of the BPF programs, of which each object can be built again.
    """
    output("dpkg-deb", "-x", str(deb), str(tmp_path))
    installed = tmp_path / "usr/lib/scope-ebpf"
    assert ["COPYING"] == [path.name for path in installed.glob("*.dist-info/licenses/probes/*")]
    source = installed / "scope_ebpf/kernel/source"
    (source / "scope_ebpf/kernel").mkdir(parents=True)
    shutil.copy(installed / "scope_ebpf/events.py", source / "scope_ebpf")
    output(sys.executable, str(source / "packaging/build_objects.py"))
    shipped = {path.name for path in (installed / "scope_ebpf/kernel/objects").iterdir()}
    assert shipped == {path.name for path in source.glob("scope_ebpf/kernel/objects/*.o")}


def test_the_same_sources_make_the_same_packages(packages: Path, tmp_path: Path):
    """
    Packages that are built again can be compared with what was published, bit by bit.
    """
    output(sys.executable, str(ROOT / "packaging/build_packages.py"), "--to", str(tmp_path))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (packages / path.name).read_bytes(), path.name
