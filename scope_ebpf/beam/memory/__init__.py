# SPDX-License-Identifier: Apache-2.0
"""Memory of another process, and the terms in it."""
