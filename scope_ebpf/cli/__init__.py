# SPDX-License-Identifier: Apache-2.0
"""The commands: options, one call, one print."""
