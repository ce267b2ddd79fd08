# SPDX-License-Identifier: Apache-2.0
"""
Every release of OTP 24 to 29 that was measured, as an image: each figure is right, or refused.

The truth is what was planted in the image and the measured structs (``releases.json``); the layouts
of the package are not a source of either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from drift import Drift, drifted
from image_answers import answers, running, truth, wrong
from measured import Measured, releases
from vm_image import make

from scope_ebpf.beam.layouts import version

if TYPE_CHECKING:
    from vm_base import Image

STOCK = [one for one in releases() if one.build == "stock" and not one.candidate]
OTHERS = [one for one in releases() if one.build != "stock" and not one.candidate]
CANDIDATES = [one for one in releases() if one.candidate]
#: Versions of ERTS whose headers were not to be had: OTP 24.3.4.18, 25.3.2.21, 26.2.5.7, 27.3.4.
LATER = ("12.3.2.18", "13.2.2.16", "14.2.5.6", "14.2.5.13", "15.2.2", "15.2.7", "15.2.7.6")
#: As ``+S 3:3 +SDcpu 2 +SDio 5``, and as ``+S 1:1 +SDcpu 1 +SDio 1``.
SHAPES = [(3, 2, 5), (1, 1, 1)]
#: What a VM without symbols does not show.
HIDDEN = {
    "counters.dirty_collections", "allocators.use.total", "allocators.use.ets",
    "allocators.use.loaded_code",
}  # fmt: skip


def check(image: Image, erts: str) -> tuple[set[str], set[str]]:
    """
    Fail for a wrong figure; give what is refused, and figures that are not known.
    """
    with running(image, erts) as target:
        found = answers(target)
    planted = truth(image)
    assert {} == wrong(found.figures, planted)
    known = {name for name, value in found.figures.items() if value is not None}
    there = {name for name, value in planted.items() if value is not None}
    unknown = {name for name in there - known if name.split(".")[0] not in found.refused}
    return set(found.refused), unknown


@pytest.mark.parametrize("schedulers", SHAPES, ids=str)
@pytest.mark.parametrize("release", STOCK, ids=str)
def test_every_release_is_read_right(release: Measured, schedulers: tuple[int, int, int]):
    """
    Nothing is wrong and nothing is refused, for each version of ERTS and with few schedulers.
    """
    image = make(release, schedulers, noise=schedulers == SHAPES[0])
    for erts in release.versions:
        assert (set(), set()) == check(image, erts), erts


def test_all_releases_are_among_them():
    """
    104 releases of OTP in 90 versions of ERTS, as they were measured.
    """
    tags = [tag for one in STOCK for found in one.versions.values() for tag in found]
    assert (104, 90) == (len(set(tags)), len({erts for one in STOCK for erts in one.versions}))


@pytest.mark.parametrize("release", OTHERS, ids=str)
def test_other_builds_are_read_right(release: Measured):
    """
    The same of builds with USDT probes, and of interpreters.
    """
    assert (set(), set()) == check(make(release), next(iter(release.versions)))


@pytest.mark.parametrize("schedulers", SHAPES, ids=str)
@pytest.mark.parametrize("release", STOCK, ids=str)
def test_without_symbols_all_is_found(release: Measured, schedulers: tuple[int, int, int]):
    """
    Tables are found by the code that uses them and by their shape; what hides is named.
    """
    image = make(release, schedulers, hidden=True)
    refused, unknown = check(image, [*release.versions][-1])
    assert {"connections"} == refused
    assert set() == unknown - HIDDEN


@pytest.mark.parametrize("release", STOCK, ids=str)
def test_a_version_that_is_not_described_is_right_or_refused(release: Measured):
    """
    Of all layouts of its release it takes the one that passes every check, or none.
    """
    check(make(release), [*release.versions][-1] + ".99")


@pytest.mark.parametrize("erts", LATER)
def test_later_patches_are_read(erts: str):
    """
    A known version that was not measured has the structs of those before it: none is refused.
    """
    release = max(
        (one for one in STOCK if _before(one, erts)), key=lambda one: version([*one.versions][-1])
    )
    assert (set(), set()) == check(make(release), erts)


def _before(release: Measured, erts: str) -> bool:
    """
    Whether the *release* is of the same line as version *erts* and not after it.
    """
    found = [*map(version, release.versions)]
    return found[0][0] == version(erts)[0] and found[0] <= version(erts)


def test_a_release_beyond_all_known_ones_takes_the_last_layout_if_it_fits():
    """
    OTP 30 with the structs of 29 is read; with another field in a scheduler it is refused by name.
    """
    last = STOCK[-1]
    with running(make(last), "18.0", otp="30") as target:
        found = answers(target)
        assert not target.layout.exact
    assert ({}, {}) == (wrong(found.figures, truth(make(last))), found.refused)
    other = drifted(last, Drift("ErtsSchedulerData", "io.out", 8))
    with running(make(other), "18.0", otp="30") as target:
        refused = answers(target).refused
    assert {"counters", "schedulers", "processes", "allocators", "connections"} <= set(refused)
    assert "which no layout describes, and none passes the checks" in refused["counters"]
    assert "the check that" in refused["counters"]


@pytest.mark.parametrize("release", CANDIDATES, ids=str)
def test_a_release_candidate_is_right_or_refused(release: Measured):
    """
    It has the version of another release, and other structs.
    """
    check(make(release), next(iter(release.versions)))


def test_versions_are_numbers():
    """
    The versions of the measurement are such as the package compares.
    """
    assert all(version(erts) for one in releases() for erts in one.versions)
