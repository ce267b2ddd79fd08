# SPDX-License-Identifier: Apache-2.0
"""
Makes references from builds that have symbols, and reads a build's own debug file.

Nothing here is used while a VM is observed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.hidden.memory import DEBUG_FILE, Functions, Place
from scope_ebpf.beam.hidden.reference import WANTED, BadReferenceError, Build, Reference, learned
from scope_ebpf.beam.vm.discover import version_of
from scope_ebpf.sandbox import answers
from scope_ebpf.sandbox.client import UnreadableFileError

if TYPE_CHECKING:
    from scope_ebpf.beam.elf.binary import Binary

#: CPU seconds that learning may take, and seconds until its answer is late.
_SECONDS, _PATIENCE = 30.0, 300.0
#: Fewer of the wanted functions are those of a stripped file.
_FEWEST = 15


def learn(binary: Binary) -> Reference:
    """
    Make the reference of *binary*, an emulator with symbols.

    Raises BadReferenceError that says why it teaches nothing, and RefusedFileError.
    """
    version = version_of(binary)
    if version is None:
        raise BadReferenceError(f"{binary.path} is no BEAM")
    if binary.machine != "x64":
        raise BadReferenceError(f"{binary.path} is of {binary.machine}; only x64 is matched")
    parser = binary.apart(_SECONDS, _PATIENCE)
    try:
        found: Any = parser.ask("learn", lambda a: a, list(WANTED))
        release, erts, flavor = version
        compiler = answers.text(found["compiler"], 64)
        printable = "".join(c if 0x20 <= ord(c) < 0x7F else "?" for c in compiler)
        reference = learned(Build(release, erts, flavor, binary.machine, printable), found)
    except (ValueError, TypeError, KeyError, UnreadableFileError) as error:
        raise BadReferenceError(f"{binary.path} teaches nothing: {error}") from None
    finally:
        parser.close()
    if len(reference.wanted) < _FEWEST:
        raise BadReferenceError(
            f"{binary.path} names {len(reference.wanted)} of {len(WANTED)} functions: it is "
            "stripped; wanted is an emulator with symbols, as `make` leaves it in OTP's bin/"
        )
    return reference


def of_debug_file(binary: Binary, fd: int) -> Functions:
    """
    The functions of *binary* by the debug file *fd*, which becomes this function's.

    Raises BadReferenceError for a file that is not of this build, and RefusedFileError.
    """
    parser = binary.apart(_SECONDS, _PATIENCE)
    try:
        file = parser.ask("digest", partial(answers.text, most=64))
        if not binary.build_id or not parser.add_debug(fd, None, binary.build_id):
            raise BadReferenceError(
                f"the debug file is not of {binary.path}: its build id is another one"
            )
        found = parser.ask(
            "wanted", lambda a: answers.table(a, _place, len(WANTED)), file, list(WANTED)
        )
    except UnreadableFileError as error:
        raise BadReferenceError(f"the debug file cannot be used: {error}") from None
    finally:
        parser.close()
    return Functions(file, DEBUG_FILE, DEBUG_FILE, True, found)


def _place(found: Any) -> Place:
    start, size = answers.row(found, answers.integer, lambda n: answers.integer(n, 1 << 26, 1))
    return Place(start, size)
