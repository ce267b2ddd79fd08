# SPDX-License-Identifier: Apache-2.0
"""The emulator's file: symbols, USDT sites, addresses for breakpoints."""
