# SPDX-License-Identifier: Apache-2.0
"""Programs that observe a target: loaded, attached, read."""
