# SPDX-License-Identifier: Apache-2.0
"""The virtual machine as a whole: identity, counters, schedulers, allocators."""
