# SPDX-License-Identifier: Apache-2.0
"""Which processes are VMs, and what a look at one may take."""
