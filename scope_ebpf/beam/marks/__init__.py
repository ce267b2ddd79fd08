# SPDX-License-Identifier: Apache-2.0
"""Code that scope_mark has marked: its markers and its functions."""
