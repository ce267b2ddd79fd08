# SPDX-License-Identifier: Apache-2.0
"""
The daemon's config: defaults, overridden by a TOML file, overridden by options.

The name and the value of every key are checked. ConfigError says in one line which key is wrong,
what was found and what is expected.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_ebpf.errors import UsageError
from scope_ebpf.metrics.telemetry import LEAST_SERIES
from scope_ebpf.telemetry import specs
from scope_ebpf.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.telemetry.specs import Spec

DEFAULT_LISTEN = "127.0.0.1:9568"


class ConfigError(UsageError):
    """The config is wrong, or cannot be read."""


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """The table ``[telemetry]``."""

    #: Maximum series of one VM's telemetry events; 0 for none, and no hooks for them.
    series: int = 0
    #: What `scope-trace` takes of events beside what is known of libraries.
    specs: tuple[Spec, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; times in seconds, shares from 0 to 1."""

    #: An address and a port, or the path of a Unix socket.
    listen: tuple[str, int] | Path = ("127.0.0.1", 9568)
    #: The group that may use the Unix socket; if empty, only root may.
    socket_group: str = ""
    #: Host names under which a loopback address may be requested, besides localhost.
    hosts: tuple[str, ...] = ()
    #: Share of a target's CPU that observing it may cost.
    budget: float = 0.01
    #: End instead of going on without parts that the host refuses.
    strict: bool = False
    #: Seconds between two scans for VMs whose start was not reported.
    scan_interval: float = 10.0
    #: Age in seconds from which a VM is observed.
    min_age: float = 1.0
    #: Minimum seconds between two snapshots of a VM's processes.
    snapshot_interval: float = 15.0
    #: Minimum seconds between two checks of a VM; 0 for none.
    findings_interval: float = 60.0
    #: The share of a memory limit from which what a VM holds is kept in a file; 0 for never.
    blackbox_share: float = 0.9
    #: The folder of these files; if empty, that of the service, if it has one.
    blackbox_folder: str = ""
    #: Processes in each ranking.
    top: int = 5
    #: Maximum series of a scrape; further VMs are left out as a whole.
    max_series: int = 50_000
    compat: tuple[str, ...] = ()
    include_nodes: tuple[re.Pattern[str], ...] = ()
    exclude_nodes: tuple[re.Pattern[str], ...] = ()
    include_paths: tuple[re.Pattern[str], ...] = ()
    exclude_paths: tuple[re.Pattern[str], ...] = ()
    include_cgroups: tuple[re.Pattern[str], ...] = ()
    exclude_cgroups: tuple[re.Pattern[str], ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    #: User name to password hash, as ``scope-ebpfd --hash-password`` writes it.
    users: dict[str, str] = field(default_factory=dict)
    #: Maximum series of the servers of one VM, by module; 0 for none.
    genservers: int = 0
    #: Maximum number of series of the marked callbacks of one VM; 0 for none.
    marks: int = 0
    telemetry: TelemetryConfig = TelemetryConfig()

    def wants(self, node: str, path: str, cgroup: str) -> bool:
        """True if no pattern excludes the VM, and each list of includes matches it or is empty."""
        for value, include, exclude in (
            (node, self.include_nodes, self.exclude_nodes),
            (path, self.include_paths, self.exclude_paths),
            (cgroup, self.include_cgroups, self.exclude_cgroups),
        ):
            if any(pattern.search(value) for pattern in exclude):
                return False
            if include and not any(pattern.search(value) for pattern in include):
                return False
        return True


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """
    Read the file at *path*, if that is not None.

    *overrides* are values in the form of the file. Raises ConfigError.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(_text(path))
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no TOML: {error}") from None
    table |= {key: value for key, value in (overrides or {}).items() if value is not None}
    config = replace(Config(), **{k: _value(k, v, path) for k, v in table.items()})
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("TLS needs both tls_cert and tls_key")
    return config


def _text(path: Path) -> str:
    """The text of a file. FIFOs are refused: without a writer, reading one never ends."""
    if path.is_fifo():
        raise ConfigError(f"cannot read the config {path}: it is a FIFO, not a file")
    return path.read_text("utf-8")


def _value(key: str, value: Any, path: Path | None) -> Any:
    where = str(path) if path else "the command line"
    parse = _KEYS.get(key)
    if parse is None:
        raise ConfigError(f"{where} has the unknown key {key!r}; there are: {', '.join(_KEYS)}")
    try:
        return parse(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {key} = {value!r} is wrong: {error}") from None


def share(value: Any) -> float:
    """Parse ``"1%"`` or ``0.01``: more than 0, at most 0.5."""
    number = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)
        if match is None:
            raise ValueError('a share is written like "1%"')
        number = float(match[1]) / 100
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 0.5:
        raise ValueError('wanted is a share above 0, up to "50%"')
    return float(number)


def part(value: Any) -> float:
    """Parse ``"90%"`` or ``0.9``: from 0, which is none, to 1."""
    number = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value, re.ASCII)
        number = float(match[1]) / 100 if match else None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
        raise ValueError('wanted is a share up to "100%", like "90%"; 0 for none')
    return float(number)


def _folder(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")) or "\0" in value:
        raise ValueError('wanted is the path of a folder, like "/var/lib/scope-ebpf"')
    return value


def address(value: Any) -> tuple[str, int] | Path:
    """``"127.0.0.1:9568"``, ``"[::1]:9568"``, ``"unix:/run/scope-ebpf/metrics.sock"``."""
    kind, _, path = str(value).partition(":")
    if kind == "unix":
        # sun_path has 108 bytes, a zero among them (unix(7)).
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 107:
            raise ValueError('a Unix socket is written like "unix:/run/scope-ebpf/metrics.sock"')
        return Path(path)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]+)):(\d{1,5})", str(value))
    if match is None or int(match[3]) > 65535:
        raise ValueError(f'wanted is an address and a port, like "{DEFAULT_LISTEN}"')
    return match[1] or match[2], int(match[3])


def names(value: Any) -> tuple[str, ...]:
    """Parse a list of host names, without ports."""
    good = isinstance(value, list) and all(
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in value
    )
    if not good:
        raise ValueError('wanted is a list of names of hosts, like ["metrics.example.org"]')
    return tuple(name.lower() for name in value)


def _group(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("wanted is the name of a group")  # noqa: TRY004 - as all others
    return value


def time(least: float) -> Callable[[Any], float]:
    """A parser of ``15``, ``"15s"``, ``"500ms"``, ``"1m"``: *least* seconds to a week."""

    def parse(value: Any) -> float:
        if isinstance(value, bool):
            value = repr(value)  # it is a number to Python
        return seconds(str(value), least=least)

    return parse


def count(most: int, least: int = 0) -> Callable[[Any], int]:
    """A parser of whole numbers from *least* to *most*."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"wanted is a whole number from {least} to {most}")
        return value

    return parse


def patterns(value: Any) -> tuple[re.Pattern[str], ...]:
    """Parse a list of regular expressions."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("wanted is a list of regular expressions")
    try:
        return tuple(re.compile(item) for item in value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None


def _choices(*names: str) -> Callable[[Any], tuple[str, ...]]:
    def parse(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not set(value) <= set(names):
            raise ValueError(f"wanted is a list of: {', '.join(names)}")
        return tuple(value)

    return parse


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("wanted is true or false")  # noqa: TRY004 - one kind of error for all
    return value


#: The format of ``hash_password`` in ``http.py``: rounds below ten million, salt, 32 bytes.
_HASH = re.compile(r"pbkdf2:[1-9][0-9]{0,6}:(?:[0-9a-f]{2})+:[0-9a-f]{64}")


def _users(value: Any) -> dict[str, str]:
    good = isinstance(value, dict) and all(_HASH.fullmatch(str(text)) for text in value.values())
    if not good:
        raise ValueError("wanted is a table of names and what `scope-ebpfd --hash-password` prints")
    return dict(value)


def _telemetry(value: Any) -> TelemetryConfig:
    try:
        found = tuple(specs.of_table(value, "the config"))
    except specs.SpecError as error:
        raise ValueError(str(error)) from None
    return TelemetryConfig(_series(value.get(specs.SERIES, 0), LEAST_SERIES, 5000), found)


def _series(value: Any, least: int, most: int) -> int:
    """A maximum number of series, 0 for none."""
    series = count(most)(value)
    if 0 < series < least:
        raise ValueError(f"series is 0 or from {least} to {most}")
    return series


def _only_series(least: int) -> Callable[[Any], int]:
    """For a table such as ``[genservers]``: the number of its key ``series``, 0 or *least*."""

    def number(value: Any) -> int:
        if not isinstance(value, dict) or value.keys() - {"series"}:
            raise ValueError("wanted is a table with the key series")
        return _series(value.get("series", 0), least, 1000)

    return number


#: Series of one module with its callers, and of all others.
_LEAST_OF_SERVERS = 14
#: Series of one function, and of all others.
_LEAST_OF_MARKS = 10
_KEYS: dict[str, Callable[[Any], Any]] = {
    "listen": address,
    "socket_group": _group,
    "hosts": names,
    "budget": share,
    "strict": _boolean,
    "scan_interval": time(0.1),
    "min_age": time(0.0),
    "snapshot_interval": time(1.0),
    "findings_interval": time(0.0),
    "blackbox_share": part,
    "blackbox_folder": _folder,
    "top": count(20),
    "max_series": count(10_000_000, 1_000),
    "compat": _choices("erlang-vm", "prom-ex"),
    **{
        f"{verb}_{what}": patterns
        for verb in ("include", "exclude")
        for what in ("nodes", "paths", "cgroups")
    },
    "tls_cert": str,
    "tls_key": str,
    "users": _users,
    "telemetry": _telemetry,
    "genservers": _only_series(_LEAST_OF_SERVERS),
    "marks": _only_series(_LEAST_OF_MARKS),
}
assert set(_KEYS) == {f.name for f in fields(Config)}  # noqa: S101 - a key without a setting is a bug
