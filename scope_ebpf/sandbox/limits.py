# SPDX-License-Identifier: Apache-2.0
"""How much of a hostile file is parsed; a file with more is refused, with the limit's name."""

from __future__ import annotations

#: An executable has some 30 sections.
SECTIONS = 4096
SEGMENTS = 512
#: Bytes of one section. An unstripped emulator has 3 MB of names.
SECTION = 64 << 20
SYMBOLS = 1 << 20
#: Characters of a name: C++ makes long ones, hostile files endless ones.
NAME = 4096
#: Symbols in one answer.
MATCHES = 1 << 16
#: Bytes of notes, sites of the provider ``erlang``, and sites of all providers.
NOTES, SITES, ALL_SITES = 4 << 20, 4096, 8192
#: Characters of one text in a USDT note; the VM's are shorter.
NOTE_TEXT = 512
#: Bytes that .gnu_debugdata unfolds to, and that its unpacking may need besides.
UNPACKED, UNPACKING = 64 << 20, 96 << 20
#: Bytes of the file in one answer.
CONTENT = 1 << 20
#: Bytes at each address where many addresses are read at once.
HEAD = 8
#: Occurrences of a text that are reported, and occurrences of its beginning that are tried.
FOUND, TRIED = 1024, 1024
#: Bytes around an occurrence that a pattern is matched with.
AROUND = 1024
#: Bytes of a function that are disassembled; instructions that are reported.
CODE, INSTRUCTIONS = 1 << 16, 4096
#: Functions of a file; calls of one that count; bytes of relocations; bytes of a called name.
FUNCTIONS, CALLS, RELOCATIONS, CALLED = 1 << 16, 1024, 8 << 20, 64
#: Bytes of a file whose functions are looked for; they are all in the child's memory.
PROGRAM = 128 << 20
#: Bytes of a function that are disassembled for its constants.
MARKED = 8 << 10
#: Functions of a reference, and of each the calls, and the marks of one kind.
ROWS_LEARNED, LEARNED_CALLS, LEARNED_MARKS = 2048, 400, 48
#: Bytes of one frame description, and its rows.
DESCRIPTION, ROWS = 1 << 16, 4096
#: Bytes of one message in either direction.
MESSAGE = 32 << 20

#: Limits of the child: bytes of memory, seconds of CPU in all, open files, idle seconds.
MEMORY, CPU, FILES, IDLE = 512 << 20, 60, 16, 5.0
#: Its exit status when it was idle for that long.
IDLE_STATUS = 3
#: Instead of a child's number, in a request for another child: any one, one that reads frame
#: descriptions, one that looks for functions, one that disassembles nothing, and one that takes
#: the digest of a file.
ANY, UNWINDS, SEEKS, READS, DIGESTS = 0, -1, -2, -3, -4
#: Questions of which SEEKS is the kind; and those for which others decode instructions.
SOUGHT = frozenset(("learn", "match", "wanted"))
DECODED = frozenset(("entries", "calls", "references", "leave", "resumes", "sizes"))


class LimitError(Exception):
    """The file has more of something than is parsed."""


class MalformedError(Exception):
    """The file is not an ELF file, or of an unknown kind."""
