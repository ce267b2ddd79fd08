# SPDX-License-Identifier: Apache-2.0
"""
Releases whose structs have drifted: each figure is right, or refused.
"""

from __future__ import annotations

from random import Random

import pytest
from drift import ALIGNED, any_of, drifted
from image_answers import answers, running, truth, wrong
from measured import releases
from vm_image import make

STOCK = [one for one in releases() if one.build == "stock" and not one.candidate]
#: Structs in which some drifts still show: ``survey.py`` prints them.
UNPROVEN = {"Allctr_t", "ErtsCodeInfo", "ErtsMessage", "ErtsMonLnkNode", "ErtsRunQueue"}
PROVEN = [struct for struct in ALIGNED if struct not in UNPROVEN]
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
        drift = any_of(release, chance, PROVEN)
        image = make(drifted(release, drift), shape, hidden=hidden, noise=chance.random() < 0.5)
        erts = next(iter(release.versions)) + ".99" * (not described)
        with running(image, erts) as target:
            found = answers(target)
        refused += bool(found.refused)
        assert {} == wrong(found.figures, truth(image)), (str(release), drift, shape)
    assert refused > 5
