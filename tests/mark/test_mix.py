# SPDX-License-Identifier: Apache-2.0
"""
Mix projects with the compiler and the release step: built, built again, tested, switched and
released.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from beams_run import require
from mark_run import HERE, LIBRARY, folder, mark


class Project:
    """
    A copy of the project, whose modules' marks scope-mark itself reports.
    """

    def __init__(self, source, path):
        require(shutil.which("mix"), "elixir is not installed")
        shutil.copytree(source, path)
        self.path = path

    def mix(self, *words, **environment):
        done = subprocess.run(
            ["mix", *words],
            cwd=self.path,
            env={**os.environ, "SCOPE_MARK": str(LIBRARY), "MIX_ENV": "dev", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def marks(self, below):
        """
        The profile of each module below a folder, or None.
        """
        files = json.loads(mark(self.path / below, "--info", "--format", "json").stdout)["files"]
        return {f["module"].removeprefix("Elixir."): f["profile"] for f in files}

    def bytes_of(self, below):
        """
        The contents of all modules below a folder.
        """
        return {p.name: p.read_bytes() for p in (self.path / below).rglob("*.beam")}


@pytest.fixture(scope="module")
def shop():
    return Project(HERE / "shop", folder("scope-shop-") / "shop")


OWN = "_build/dev/lib/shop/ebin"
CONSOLIDATED = "_build/dev/lib/shop/consolidated"


def test_the_compiler_marks_and_follows_its_profile(shop):
    """
    Callbacks by default in dev; a second build does nothing; a change and another profile mark
    again; none unmarks.
    """
    assert "Marked" not in shop.mix("compile", PROFILE="none")
    plain = shop.bytes_of(OWN)
    assert "Marked 2 modules" in shop.mix("compile")
    expected = dict.fromkeys(("Shop.Price", "Shop.Price.Integer", "Shop.Counter"))
    expected |= {"Shop": "callbacks", "Shop.Cart": "callbacks"}
    assert shop.marks(OWN) == expected
    marked = shop.bytes_of(OWN)
    assert "Marked" not in shop.mix("compile")
    (shop.path / "lib/shop.ex").touch()
    shop.mix("compile", "--force")
    assert shop.bytes_of(OWN) == marked
    assert "Marked" in shop.mix("compile", PROFILE="all")
    assert set(shop.marks(OWN).values()) == {"all"}
    assert shop.marks(CONSOLIDATED)["Shop.Price"] == "all"
    shop.mix("compile", PROFILE="none")
    assert shop.bytes_of(OWN) == plain
    assert set(shop.marks(CONSOLIDATED).values()) == {None}


def test_tests_run_in_marked_code(shop):
    """
    The project's tests pass, and find marks in the modules that run, the consolidated protocol
    among them.
    """
    assert "1 test, 0 failures" in shop.mix("test", MIX_ENV="test", PROFILE="all")


def test_a_release_carries_the_marks(shop):
    """
    A stripped release is marked as a whole, OTP and Elixir too, and runs; without a profile it
    is left as it is.
    """
    words = ("release", "--overwrite", "--quiet")
    shop.mix(*words, MIX_ENV="prod")
    release = "_build/prod/rel/shop"
    assert set(shop.marks(release).values()) == {None}
    shop.mix(*words, MIX_ENV="prod", RELEASE_PROFILE="callbacks")
    marks = shop.marks(release)
    assert {
        marks[name] for name in ("Shop.Cart", "gen_server", "supervisor", "Logger.Watcher")
    } == {"callbacks"}
    assert marks["Shop.Price.Integer"] is marks["lists"] is None
    start = (
        "{:ok, _} = Application.ensure_all_started(:shop); "
        "profile = Shop.Cart.__info__(:attributes)[:scope_mark][:profile]; "
        "IO.inspect({GenServer.call(Shop.Cart, {:add, 1}), profile})"
    )
    done = subprocess.run(
        [shop.path / release / "bin/shop", "eval", start],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "{1, :callbacks}"


def test_an_umbrella_marks_each_of_its_applications(tmp_path):
    """
    Both applications of an umbrella are marked, each by its own profile; a second build does
    nothing.
    """
    (tmp_path / "umbrella/apps").mkdir(parents=True)
    top = 'def project, do: [apps_path: "apps", deps: []]'
    top = f"defmodule U.MixProject do\n  use Mix.Project\n  {top}\nend\n"
    (tmp_path / "umbrella/mix.exs").write_text(top)
    for name, profile in (("one", "callbacks"), ("two", "all")):
        shutil.copytree(HERE / "shop", tmp_path / "umbrella/apps" / name)
        mix = (HERE / "shop/mix.exs").read_text().replace("Shop.", f"{name.title()}.")
        mix = mix.replace(
            "app: :shop",
            f'app: :{name}, build_path: "../../_build", deps_path: "../../deps", '
            'lockfile: "../../mix.lock"',
        )
        mix = mix.replace('profile("PROFILE")', f":{profile}").replace(
            "mod: {Shop", f"mod: {{{name.title()}"
        )
        (tmp_path / "umbrella/apps" / name / "mix.exs").write_text(mix)
        code = (HERE / "shop/lib/shop.ex").read_text().replace("Shop", name.title())
        (tmp_path / "umbrella/apps" / name / "lib/shop.ex").write_text(code)
    umbrella = Project(tmp_path / "umbrella", tmp_path / "copy")
    assert umbrella.mix("compile").count("Marked") >= 2
    one, two = (umbrella.marks(f"_build/dev/lib/{name}/ebin") for name in ("one", "two"))
    assert (one["One.Cart"], one["One.Counter"]) == ("callbacks", None)
    assert set(two.values()) == {"all"}
    assert "Marked" not in umbrella.mix("compile")
