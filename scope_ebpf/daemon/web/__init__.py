# SPDX-License-Identifier: Apache-2.0
"""What scrapers and browsers ask."""
