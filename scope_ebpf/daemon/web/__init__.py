# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: metrics for scrapers, a page for browsers, health checks."""
