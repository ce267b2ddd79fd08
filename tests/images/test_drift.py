# SPDX-License-Identifier: Apache-2.0
"""
Releases whose structs have drifted: each figure is right, or refused.
"""

from __future__ import annotations

from random import Random

import pytest
from drift import Drift, any_of, drifted
from image_answers import answers, running, truth, wrong
from measured import releases
from test_releases import HIDDEN
from vm_image import make

STOCK = [one for one in releases() if one.build == "stock" and not one.candidate]
#: Drifts that move a figure by little, so that only a comparison within the VM shows them.
SMALL = [
    Drift("ErtsCodeInfo", "mfa.arity", 16),
    Drift("ErtsCodeInfo", "sizeof", 32),
    Drift("ErtsMonLnkNode", "flags", 16),
    Drift("ErtsMonLnkNode", "sizeof", 8),
    Drift("ErtsRunQueue", "misc.start", 8),
    Drift("ErtsRunQueue", "ports.info.len", 16),
    Drift("ErtsPTab", "vola.tile.aid_ix", 32),
    Drift("Allctr_t", "mbcs.blocks", -16),
    Drift("ErtsMessage", "hfrag.alloc_size", -8),
]
SHAPES = [(3, 2, 5), (1, 1, 1)]


@pytest.mark.parametrize("described", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("hidden", [False, True], ids=["symbols", "hidden"])
def test_a_drift_shows_no_wrong_figure(*, hidden: bool, described: bool):
    """
    200 drifts at random: of versions that a layout describes, and of some that none does.
    """
    chance, refused = Random(f"{hidden} {described}"), 0  # the same each time
    for _ in range(80 if described else 20):
        release, shape = chance.choice(STOCK), chance.choice(SHAPES)
        drift = any_of(release, chance)
        image = make(drifted(release, drift), shape, hidden=hidden, noise=chance.random() < 0.5)
        erts = next(iter(release.versions)) + ".99" * (not described)
        with running(image, erts) as target:
            found = answers(target)
        refused += bool(found.refused)
        assert {} == wrong(found.figures, truth(image)), (str(release), drift, shape)
    assert refused > 5


@pytest.mark.parametrize("drift", SMALL, ids=lambda one: f"{one.struct}.{one.field}{one.by:+}")
def test_a_small_drift_is_refused(drift: Drift):
    """
    On OTP 25 and 29 without symbols: no figure is wrong, and some that would be are not shown.
    """
    for otp in (25, 29):
        release = next(one for one in STOCK[::-1] if one.otp == otp)
        image = make(drifted(release, drift), hidden=True)
        with running(image, next(iter(release.versions))) as target:
            found = answers(target)
        planted = truth(image)
        assert {} == wrong(found.figures, planted)
        kept = {name for name, value in found.figures.items() if value is not None}
        reported = {name for name, value in planted.items() if value is not None}
        missing = reported - kept - HIDDEN  # no VM without symbols shows its connections
        assert [name for name in missing if not name.startswith("connections.")], found.refused
