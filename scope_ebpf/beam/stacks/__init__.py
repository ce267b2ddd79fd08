# SPDX-License-Identifier: Apache-2.0
"""
Copied stacks as functions.

- ``erlang_frames``: Erlang frames, beneath the C frames of a sample
- ``native_frames``: C frames, from the registers to Erlang code
- ``native``: files and functions of native code
- ``frames``: call frame information of one file
- ``jit_frames``: sizes of frames, and the Erlang stack pointer, from the JIT's instructions
- ``sampling``: constants for the profiler's programs
"""
