# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a VM, part by part, from its memory and ``/proc``."""
