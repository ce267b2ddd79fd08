# SPDX-License-Identifier: Apache-2.0
"""
The config: what is taken, and the one line that says why something is not.
"""

import os
import re
from pathlib import Path

import pytest

from scope_ebpf.daemon.config import Config, ConfigError, load
from scope_ebpf.daemon.web.http import hash_password, matches


def write(folder, text):
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold():
    """
    No config at all is a good config.
    """
    assert Config() == load(None)


def test_a_file_is_read_in_its_units(tmp_path):
    """
    Shares, times and addresses are written as people write them.
    """
    text = 'listen = "[::1]:1234"\nbudget = "0.5%"\nsnapshot_interval = "1m"\nscan_interval = 0.5\n'
    config = load(write(tmp_path, text))
    assert ("::1", 1234) == config.listen
    assert config.budget == pytest.approx(0.005)
    assert config.snapshot_interval == 60.0
    assert config.scan_interval == 0.5


def test_a_unix_socket_is_a_path(tmp_path):
    """
    Its length is that of the kernel, and it has a scheme; host names are case-insensitive.
    """
    path = f"/{'x' * 106}"
    config = load(write(tmp_path, f'listen = "unix:{path}"\nhosts = ["Metrics.example.org"]\n'))
    assert Path(path) == config.listen
    assert ("metrics.example.org",) == config.hosts


def test_the_command_line_wins(tmp_path):
    """
    An option overrides the file.
    """
    config = load(write(tmp_path, 'budget = "1%"\n'), {"budget": "2%", "listen": None})
    assert config.budget == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bugdet = 0.01", "unknown key 'bugdet'"),
        ('budget = "1s"', "a share is written like"),
        ("budget = 0", "above 0"),
        ("budget = true", "above 0"),
        ('listen = "9568"', "an address and a port"),
        ('listen = "127.0.0.1:99999"', "an address and a port"),
        ('listen = "unix:metrics.sock"', "a Unix socket is written like"),
        (f'listen = "unix:/{"x" * 107}"', "a Unix socket is written like"),
        ('listen = "unix:/a\\u0000b"', "a Unix socket is written like"),
        ("socket_group = 7", "the name of a group"),
        ('hosts = "localhost"', "a list of names of hosts"),
        ('hosts = ["a:80"]', "a list of names of hosts"),
        ('snapshot_interval = "10 parsecs"', "a time is written like"),
        ("snapshot_interval = 0.1", "1 s at least"),
        ('scan_interval = "169h"', "a week at most"),
        ('min_age = "' + "9" * 400 + '"', "a week at most"),
        ("top = 1000", "from 0 to 20"),
        ('findings_interval = "often"', "a time is written like"),
        ("genservers = 60", "a table with the key series"),
        ("genservers = {serie = 60}", "a table with the key series"),
        ("genservers = {series = 13}", "0 or from 14 to 1000"),
        ("genservers = {series = true}", "from 0 to 1000"),
        ("marks = 60", "a table with the key series"),
        ("marks = {series = 9}", "0 or from 10 to 1000"),
        ("telemetry = {series = 199}", "0 or from 200 to 5000"),
        ("telemetry = {series = 5001}", "from 0 to 5000"),
        ("telemetry = {serie = 200}", "and the key series, and nothing else"),
        ('exclude_nodes = ["("]', "no regular expression"),
        ('include_nodes = ["a{99999999999}"]', "no regular expression"),
        (f'include_nodes = ["{"(" * 5000}{")" * 5000}"]', "no regular expression"),
        ('compat = ["erlang"]', "a list of: erlang-vm"),
        ('users = {a = "secret"}', "--hash-password"),
        (f'users = {{a = "pbkdf2:10:abc:{"0" * 64}"}}', "--hash-password"),
        (f'users = {{a = "pbkdf2:0:ab:{"0" * 64}"}}', "--hash-password"),
        (f'users = {{a = "pbkdf2:99999999999:ab:{"0" * 64}"}}', "--hash-password"),
        ('users = {a = "pbkdf2:10:ab:00"}', "--hash-password"),
        ('tls_cert = "x"', "TLS needs both"),
        ("budget = ", "is no TOML"),
        (f"budget = {'[' * 5000}", "is no TOML"),
        (f"top = {'9' * 5000}", "is no TOML"),
    ],
)
def test_an_error_is_one_line(tmp_path, text, why):
    """
    A wrong key, unit or value is refused with its name and what is expected.
    """
    with pytest.raises(ConfigError, match=re.escape(why)) as refused:
        load(write(tmp_path, text + "\n"))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """
    A config that is named must exist.
    """
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")


def test_a_fifo_is_refused(tmp_path: Path):
    """
    It is refused at once: there may never be a writer.
    """
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="it is a FIFO, not a file"):
        load(tmp_path / "fifo")


def test_targets_are_chosen_by_name_path_and_cgroup(tmp_path):
    """
    Excluded targets are not observed; with an include list, only included ones are.
    """
    text = 'include_nodes = ["^rabbit@"]\nexclude_cgroups = ["/test"]\n'
    config = load(write(tmp_path, text))
    assert config.wants("rabbit@a", "/usr/lib/beam.smp", "/system.slice")
    assert not config.wants("other@a", "/usr/lib/beam.smp", "/system.slice")
    assert not config.wants("rabbit@a", "/usr/lib/beam.smp", "/test/1")


def test_a_password_is_kept_as_a_hash():
    """
    The hash matches its password and no other.
    """
    stored = hash_password(b"secret", b"salt", rounds=10)
    assert matches(stored, b"secret")
    assert not matches(stored, b"Secret")
    assert "secret" not in stored
