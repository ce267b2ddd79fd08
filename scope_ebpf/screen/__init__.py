# SPDX-License-Identifier: Apache-2.0
"""
Tables on a terminal: what fits, and the terminal itself.

- ``cells``: how wide a text is, and cutting it
- ``layout``: columns and figures for a given width
- ``terminal``: the whole screen, keys, signals; restored however the command ends
"""
