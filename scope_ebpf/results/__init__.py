# SPDX-License-Identifier: Apache-2.0
"""What a run has seen, as plain data; the JSON documents."""
