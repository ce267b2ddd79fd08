# SPDX-License-Identifier: Apache-2.0
"""
Which drifts of a release show a wrong figure: ``python tests/images/survey.py [SEED] [COUNT]``.

Prints each struct and field whose drift is read wrongly, with one example.
"""

from __future__ import annotations

import random
import sys
from collections import Counter

from drift import any_of, drifted
from image_answers import answers, running, truth, wrong
from measured import releases
from vm_image import make


def main(seed: int, count: int) -> None:
    """
    Try *count* drifts at random, half of them without symbols.
    """
    chance = random.Random(seed)
    stock = [one for one in releases() if one.build == "stock" and not one.candidate]
    bad: Counter[tuple[str, str, bool]] = Counter()
    examples: dict[tuple[str, str, bool], str] = {}
    for _ in range(count):
        release, shape = chance.choice(stock), chance.choice([(3, 2, 5), (1, 1, 1)])
        drift, hidden = any_of(release, chance), chance.random() < 0.5
        noise = chance.random() < 0.5
        image = make(drifted(release, drift), shape, hidden=hidden, noise=noise)
        with running(image, next(iter(release.versions))) as target:
            found = wrong(answers(target).figures, truth(image))
        if found:
            key = drift.struct, drift.field, hidden
            bad[key] += 1
            examples[key] = f"{release} {drift.by:+} {shape} noise={noise} {[*found.items()][:2]}"
    sys.stdout.write(f"{bad.total()} of {count} wrong\n")
    for key, times in sorted(bad.items()):
        sys.stdout.write(f"{times} {key} {examples[key][:250]}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3] or (1, 200)))
