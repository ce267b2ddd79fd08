# SPDX-License-Identifier: Apache-2.0
"""
Functions of an emulator that hides its symbols, as OTP 29 and later do.

- ``reference``: what a build with symbols teaches of the wanted functions, as a file
- ``shelf``: which references there are, and the nearest one for a VM
- ``memory``: what was found in a file, kept for the next start
- ``debuginfod``: gets a debug file from a server, for ``scope-trace learn`` alone
- ``resolve``: gives a binary the functions that were found in it
"""
