# SPDX-License-Identifier: Apache-2.0
"""
Real Erlang VMs for tests: started, talked to by lines, and ended by their pid.

    with planted("stock25") as beam:
        assert beam.ask("spawns 23") == "done spawns 23"

The kinds are the installed OTP 25 (``stock25``), the same with USDT probes (``usdt25``), that as an
interpreter (``emu25``), and the OTP of other Debian suites in a root, mount and pid namespace of
their own (``bullseye23``, ``trixie27``, ``sid29``). SCOPE_INSTEAD runs tests on another build, such
as those of tests/beams/build-odd.sh: ``SCOPE_INSTEAD=stock25=odd-hard,sid29=odd-forky-lto``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE: Final = Path(__file__).parent
WORKLOADS: Final = HERE / "workloads"
KINDS: Final = ("stock25", "usdt25", "emu25", "trixie27", "sid29", "bullseye23")

_SUITES: Final = {"trixie27": "trixie", "sid29": "sid", "bullseye23": "bullseye"}
#: The emulators of tests/beams/build-usdt.sh, as erlexec wants them named: it adds ``.smp``.
_PROBED: Final = {"usdt25": "beam", "emu25": "beam.emu"}
#: Kinds of tests/beams/build-odd.sh, such as ``odd-clang``; no test needs them.
_ODD: Final = "odd-"
#: The kind that is started instead of another one.
_INSTEAD: Final = dict(
    pair.split("=") for pair in os.environ.get("SCOPE_INSTEAD", "").split(",") if pair
)
_OTP_ROOT: Final = Path("/usr/lib/erlang")
#: The workloads are quiet on stdin and stdout except for their own lines.
_QUIET: Final = ("-noinput", "-boot", "no_dot_erlang")
#: Seconds. A VM that starts on a busy machine is slow; one that hangs shall not hang the tests.
#: On an emulated machine (tests/vm) it is more.
PATIENCE: Final = float(os.environ.get("SCOPE_PATIENCE", "120"))


def missing(reason: str) -> NoReturn:
    """
    Skip the running test, or fail it where ``SCOPE_REQUIRE_KERNEL=1`` says that all must be there.
    """
    import pytest  # benches start VMs too, without pytest

    if os.environ.get("SCOPE_REQUIRE_KERNEL") == "1":
        pytest.fail(f"SCOPE_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


def require(condition: object, reason: str) -> None:
    """
    Go on only if *condition* holds; see :func:`missing`.
    """
    if not condition:
        missing(reason)


def cache() -> Path:
    """
    The folder in which built and fetched VMs are kept.
    """
    if given := os.environ.get("SCOPE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scope-ebpf"


class Beam:
    """
    A running VM with a line-based handshake on its stdin and stdout.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], errors: IO[bytes], *, nested: bool
    ) -> None:
        self._process = process
        self._errors = errors
        self._nested = nested
        self._pending = b""
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    @functools.cached_property
    def pid(self) -> int:
        """
        The pid of ``beam.smp`` on the host; known once the VM has said its first line.
        """
        if not self._nested:
            return self._process.pid
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        assert len(children) == 1, f"unshare has the children {children}"
        return int(children[0])

    @property
    def emulator(self) -> str:
        """
        The name of the file that the VM runs.
        """
        return Path(f"/proc/{self.pid}/exe").readlink().name

    @property
    def alive(self) -> bool:
        """
        Whether the VM still runs.
        """
        return self._process.poll() is None

    def readline(self, timeout: float = PATIENCE) -> str:
        """
        The next line that the VM prints, without its end.

        Raises :class:`TimeoutError` when none comes within *timeout* seconds, and
        :class:`EOFError`, with what it wrote on stderr, when the VM ends.
        """
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no line within {timeout} s; so far: {self._pending!r}")
                chunk = os.read(self._stdout.fileno(), 65536)
                if not chunk:
                    raise EOFError(f"the VM ended: {self.stderr()}")
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def expect(self, line: str, timeout: float = PATIENCE) -> None:
        """
        Read the next line, which must be *line*.
        """
        got = self.readline(timeout)
        assert line == got, f"the VM said {got!r} where {line!r} was due: {self.stderr()}"

    def send(self, line: str) -> None:
        """
        Write one line to the VM's stdin.
        """
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    def ask(self, line: str, timeout: float = PATIENCE) -> str:
        """
        Send a command and return its answer.
        """
        self.send(line)
        return self.readline(timeout)

    def plant(self, command: str, timeout: float = PATIENCE) -> int:
        """
        Send a command that counts (``spawns 23``) and return the count that the VM reports.
        """
        name = command.partition(" ")[0]
        answer = self.ask(command, timeout)
        assert answer.startswith(f"done {name} "), f"{command!r} was answered {answer!r}"
        return int(answer.rpartition(" ")[2])

    def stats(self) -> dict[str, int]:
        """
        What the VM itself counts, for workloads with a ``stats`` command.
        """
        name, *pairs = self.ask("stats").split()
        assert name == "stats"
        return {key: int(value) for key, value in (pair.split("=") for pair in pairs)}

    def freeze(self) -> None:
        """
        Stop the VM where it stands (SIGSTOP), until :meth:`thaw`; all its threads stand then.
        """
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while not self._frozen():
            assert time.monotonic() < deadline, "the VM does not stop"
            time.sleep(0.001)

    def _frozen(self) -> bool:
        """
        Whether every thread of the VM has stopped.
        """
        stats = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] in "Tt" for stat in stats)

    def thaw(self) -> None:
        """
        Let a frozen VM go on.
        """
        os.kill(self.pid, signal.SIGCONT)

    def favour(self) -> None:
        """
        Let the VM go before everybody else: whose time is measured shall not wait for hogs.
        """
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), -20)

    def stderr(self) -> str:
        """
        What the VM wrote on stderr until now.
        """
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def stop(self) -> None:
        """
        Kill the VM and wait for its end; fine if it has ended before.
        """
        if self.alive:
            self._kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
        self._errors.close()

    def _kill(self) -> None:
        """
        Kill the VM first, so that unshare, which waits for it, leaves no zombie to init.
        """
        try:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()  # before the VM was there; unshare takes with it what is


@functools.cache
def _toy_binary() -> Path:
    require(shutil.which("gcc"), "gcc is not installed")
    folder = Path(tempfile.mkdtemp(prefix="scope-toy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = ("-O2", "-fno-omit-frame-pointer", "-fPIE", "-pie", "-rdynamic")
    out = folder / "beam.smp"
    done = _run(["gcc", *flags, "-o", str(out), str(WORKLOADS / "toy_usdt.c")])
    require("sys/sdt.h: No such file" not in done.stderr, "systemtap-sdt-dev is not installed")
    assert done.returncode == 0, f"toy_usdt.c does not compile: {done.stderr}"
    return out


@contextlib.contextmanager
def toy() -> Iterator[Beam]:
    """
    The program of ``toy_usdt.c``, ready; ``ask("go")`` fires each of its probes 23 times.
    """
    with _started([str(_toy_binary())], nested=False) as program:
        program.expect("ready")
        yield program


@contextlib.contextmanager
def _started(
    command: Sequence[str], *, nested: bool, env: Mapping[str, str] | None = None
) -> Iterator[Beam]:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=env)
    beam = Beam(process, errors, nested=nested)
    try:
        yield beam
    finally:
        beam.stop()


@dataclass(frozen=True)
class _Build:
    """
    How one kind of VM is started.
    """

    root: Path | None  # of a chroot
    environment: Mapping[str, str]
    erl: tuple[str, ...]
    erlc: tuple[str, ...]

    def command(self, program: Sequence[str], modules: Path) -> list[str]:
        """
        The command line of *program*, which sees the folder *modules* under the name :meth:`seen`.
        """
        if self.root is None:
            return list(program)
        script = (
            'mount -t proc proc "$1/proc" && mount -t tmpfs tmp "$1/tmp"'
            ' && mount --bind "$2" "$1/mnt" && shift 2 && exec chroot "$@"'
        )
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"),
            *(str(self.root), str(modules), str(self.root), *program),
        ]

    def seen(self, modules: Path) -> str:
        """
        Where the VM finds the folder *modules*.
        """
        return str(modules) if self.root is None else "/mnt"


@functools.cache
def build(kind: str) -> _Build:
    """
    The build of *kind*; the test is skipped, with the reason, where it is not there.
    """
    kind = _INSTEAD.get(kind, kind)
    if kind in _SUITES:
        return _suite(_SUITES[kind])
    if kind.startswith(_ODD) and (cache() / kind / "usr").is_dir():
        return _suite(kind)
    if kind not in KINDS and not kind.startswith(_ODD):
        raise ValueError(f"no such kind of VM: {kind}; there are {', '.join(KINDS)}")
    require(_OTP_ROOT.is_dir() and shutil.which("erlc"), "erlang-base is not installed")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    if kind == "stock25":
        return _Build(None, environment, ("erl",), ("erlc",))
    emulator, folders, script = _PROBED.get(kind, "beam"), "usdt", "build-usdt.sh"
    if kind.startswith(_ODD):
        folders, script = kind, "build-odd.sh"
    files = cache().glob(f"{folders}-*/bin/{emulator}.smp")
    built = sorted(files, key=lambda file: file.stat().st_mtime)
    require(built, f"no {emulator}.smp of {kind} is there; tests/beams/{script} builds it")
    folder = built[-1].parent
    environment |= {"EMU": emulator, "ROOTDIR": str(_OTP_ROOT), "PROGNAME": "erl"}
    environment["BINDIR"] = str(folder)
    return _Build(None, environment, (f"{folder}/erlexec",), ("erlc",))


def _suite(name: str) -> _Build:
    """
    The Erlang of another Debian suite, behind a root of its own: the folder *name* of the cache.
    """
    require(os.geteuid() == 0, f"{name} lives in a chroot, which takes root")
    made = _run([str(HERE / "beams/chroot.sh"), name])
    require(made.returncode == 0, f"{name} cannot be made: {made.stderr.strip()}")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
    return _Build(Path(made.stdout.strip()), environment, ("/usr/bin/erl",), ("/usr/bin/erlc",))


def _run(
    command: Sequence[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@functools.cache
def compiled(kind: str) -> Path:
    """
    A folder with every workload of ``tests/workloads``, compiled by that OTP release itself.

    OTP 23 refuses the code of 25, and so does 29.
    """
    folder = Path(tempfile.mkdtemp(prefix="scope-workloads-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    sources = [shutil.copy(source, folder) for source in sorted(WORKLOADS.glob("*.erl"))]
    this = build(kind)
    seen = this.seen(folder)
    command = [*this.erlc, "-o", seen, *(f"{seen}/{Path(source).name}" for source in sources)]
    done = _run(this.command(command, folder), env=this.environment)
    if done.returncode != 0:
        raise RuntimeError(f"the workloads do not compile for {kind}: {done.stdout}{done.stderr}")
    return folder


@functools.cache
def compiled_part(kind: str, part: str) -> str:
    """
    The modules of the folder *part* of ``tests/workloads``, compiled likewise, as the VM sees them.

    They are for ``-pa`` of VMs that have the folder of :func:`compiled`.
    """
    modules, this = compiled(kind), build(kind)
    shutil.copytree(WORKLOADS / part, modules / part)
    seen = f"{this.seen(modules)}/{part}"
    names = sorted(path.name for path in (WORKLOADS / part).glob("*.erl"))
    command = [*this.erlc, "-o", seen, *(f"{seen}/{name}" for name in names)]
    done = _run(this.command(command, modules), env=this.environment)
    if done.returncode != 0:
        raise RuntimeError(f"{part} does not compile for {kind}: {done.stdout}{done.stderr}")
    return seen


@contextlib.contextmanager
def start_beam(
    kind: str,
    *args: str,
    eval: str | None = None,  # noqa: A002 - the flag's name
    module_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Beam]:
    """
    Start a VM with the flags *args*, and kill it at the end of the block.

    *within* is a command that becomes the VM, such as one that enters a namespace. *eval* is an
    expression that it evaluates at its start, *module_dir* a folder of compiled modules (the
    default is those of ``tests/workloads``), *env* is added to its environment.
    """
    this = build(kind)
    modules = module_dir or compiled(kind)
    program = [*this.erl, *_QUIET, "-pa", this.seen(modules), *args]
    if eval is not None:
        program += ["-eval", eval]
    nested = this.root is not None
    environment = {**this.environment, **(env or {})}
    command = [*within, *this.command(program, modules)]
    with _started(command, nested=nested, env=environment) as beam:
        yield beam


@contextlib.contextmanager
def planted(kind: str, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Beam]:
    """
    A VM that runs ``planted.erl``, warm and waiting for its first command.
    """
    with start_beam(kind, *args, "-s", "planted", env=env) as beam:
        beam.expect("ready")
        yield beam


#: Ports that :func:`free_port` gives: below those that Linux gives to who connects or asks for any,
#: so that no process gets it before it is used.
_PORTS: Final = range(10_000, 30_000)
_given: Final[set[int]] = set()


def free_port(address: str = "127.0.0.1") -> int:
    """
    A TCP port without a listener, and another one each time.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            if port not in _given:
                _given.add(port)
                return port
    raise RuntimeError(f"no port of {_PORTS} is free")


def native_functions(folder: Path) -> dict[str, str]:
    """
    The environment in which ``names_nif.erl`` of OTP 25 finds its library, built in *folder*.
    """
    require(shutil.which("gcc"), "there is no C compiler for the test's NIF")
    (include,) = _OTP_ROOT.glob("erts-*/include")
    made = folder / "names_nif"
    source = str(WORKLOADS / "names_nif.c")
    flags = ["-shared", "-fPIC", f"-I{include}", "-o", f"{made}.so"]
    subprocess.run(["gcc", *flags, source], check=True)
    return {"NAMES_NIF": str(made)}


@functools.cache
def tls(kind: str) -> tuple[str, ...]:
    """
    Flags of nodes of this *kind* that are connected by TLS; they wait for a slow handshake.
    """
    folder = compiled(kind)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=x", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    (folder / "key.pem").chmod(0o644)
    seen = build(kind).seen(folder)
    files = f'{{certfile,"{seen}/certificate.pem"}},{{keyfile,"{seen}/key.pem"}}'
    (folder / "ssl.conf").write_text(f"[{{server,[{files}]}},{{client,[{{verify,verify_none}}]}}].")
    options = ("-ssl_dist_optfile", f"{seen}/ssl.conf")
    return "-proto_dist", "inet_tls", *options, "-kernel", "net_setuptime", "60"


@contextlib.contextmanager
def dist_pair(
    kind: str,
    *args: str,
    peer: Sequence[str] = (),
    addresses: Sequence[str] = ("127.0.0.1", "127.0.0.2"),
    within: Sequence[Sequence[str]] = ((), ()),
    module: str = "dist",
    peer_kind: str | None = None,
) -> Iterator[tuple[Beam, Beam]]:
    """
    Two nodes that run *module*: the one to watch with the flags *args*, and its peer.

    Those of ``dist.erl`` are connected. The peer is of the same kind unless another one is given.

    There is no port mapper: both nodes listen on the same port of two *addresses*, of loopback
    unless they run *within* namespaces of their own. *peer* are flags of the peer.
    """
    port = free_port()

    def node(name: str, address: str) -> tuple[str, ...]:
        interface = "{" + address.replace(".", ",") + "}"
        return (
            *("-name", f"{name}@{address}", "-setcookie", "planted", "-connect_all", "false"),
            *("-start_epmd", "false", "-erl_epmd_port", str(port)),
            *("-kernel", "inet_dist_use_interface", interface, "-s", module),
        )

    near, far = addresses
    watched = start_beam(kind, *node("watched", near), *args, within=within[0])
    other = start_beam(peer_kind or kind, *node("peer", far), *peer, within=within[1])
    with watched as beam, other as end:
        beam.expect("ready")
        end.expect("ready")
        if module == "dist":
            beam.plant(f"connect peer@{far}")
        yield beam, end
