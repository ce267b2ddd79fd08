# SPDX-License-Identifier: Apache-2.0
"""Programs at work on a target."""
