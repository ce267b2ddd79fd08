# SPDX-License-Identifier: Apache-2.0
"""The commands; the only place where the BEAM side and the kernel side meet."""
