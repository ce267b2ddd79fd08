# SPDX-License-Identifier: Apache-2.0
"""The read-only commands as tools for programs, by the Model Context Protocol over stdio."""
