# SPDX-License-Identifier: Apache-2.0
"""
Colours that stay apart for people who do not see red and green apart.

Okabe and Ito's palette ("Color Universal Design", 2008), with a grey where it has black, which a
dark theme hides. A test computes how far apart they are for the three kinds of colour blindness.
"""

from typing import Final

SKY: Final = "#56B4E9"
BLUE: Final = "#0072B2"
GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
ORANGE: Final = "#E69F00"
VERMILLION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
GREY: Final = "#666666"

#: What a value is coloured by: in order, worth a look, bad.
STATES: Final = (SKY, YELLOW, VERMILLION)
