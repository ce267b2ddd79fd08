#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Makes the layout file of one OTP release from the debug information of its emulators.

    packaging/make_layout.py 27.3.4.1 jit.o usdt.o emu.o

Each file is one build of that version: an emulator that is not stripped, or some of its object
files linked into one (``ld -r``), which tests/beams/debug-objects.sh makes; which build it is shows
in it. One version of each release is described in full; others as overlays, by what they differ in.
Prints the difference to the nearest release. docs/otp-release.md says more.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUTS = Path(__file__).resolve().parent.parent / "scope_ebpf/beam/layouts"
#: Compilers whose debug information has been held against others'.
_COMPILERS = re.compile(r"GNU C\d* |(\w+ )?clang version ")
#: DW_LANG_C89, C, C99, C11, C17. In C++, which the JIT is written in, empty structs have a size.
_C = (0x1, 0x2, 0xC, 0x1D, 0x2C)
_ABSENT = -1
#: Names of unions whose members a layout names as members of the struct around them.
_UNIONS = ("", "u")
#: Fields that are no members: indexes into lists, by the order of the types in erl_alloc.types.
_INDEXES = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")
#: Tables of a file that are no structs.
_NO_STRUCTS = ("facts", "usdt", "emu")
_HEADER = """\
# SPDX-License-Identifier: Apache-2.0
#
# Where the fields of ERTS structs lie, in bytes, x86_64, as packaging/make_layout.py has read it
# from the debug information of {tag}.
# The first tables are the JIT build; [usdt.*] and [emu.*] say what is different in a build with
# --with-dynamic-trace=systemtap and in the interpreter (-1: the field is not there). [[overlays]]
# say what is different in other versions of ERTS, from the first to the last that are named.

tag = "{tag}"
release = {release}
erts = ["{first}", "{last}"]

# What releases differ in besides offsets (class Facts). Debug information does not contain them.
[facts]
"""

Structs = dict[str, dict[str, int]]


class LayoutError(Exception):
    """Why no layout can be made; one line."""


@dataclass(frozen=True)
class Build:
    """One emulator: its version of ERTS, which build it is, and where the fields of structs lie."""

    erts: str
    name: str
    structs: Structs
    sources: dict[str, str]


class DebugInfo:
    """The structs of one ELF file, by the names of their types. Raises LayoutError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        try:
            self._elf = ELFFile(file)
        except ELFError as error:
            raise LayoutError(f"{path} is no ELF file: {error}") from None
        if self._elf["e_machine"] != "EM_X86_64":
            machine = self._elf.get_machine_arch()
            raise LayoutError(f"{path} is for {machine}: layouts are of x86_64 alone")
        if not self._elf.has_dwarf_info(strict=True):
            raise LayoutError(
                f"{path} has no debug information: it is stripped, or built without -g"
            )
        self._typedefs: dict[str, Any] = {}
        self._structs: dict[str, Any] = {}
        for unit in self._elf.get_dwarf_info().iter_CUs():
            self._take(unit)

    def _take(self, unit: Any) -> None:
        """Take in the types of one unit, if it is of C."""
        top = unit.get_top_DIE()
        language = top.attributes.get("DW_AT_language")
        if language is None or language.value not in _C:
            return
        producer = _text(top, "DW_AT_producer")
        if not _COMPILERS.match(producer):
            raise LayoutError(
                f"{self._path} was made by {producer[:60]!r}, a compiler unknown here"
            )
        for die in top.iter_children():
            name = _text(die, "DW_AT_name")
            if not name or "DW_AT_declaration" in die.attributes:
                continue
            if die.tag == "DW_TAG_typedef":
                self._typedefs.setdefault(name, die)
            elif die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                self._structs.setdefault(name, die)

    def find(self, name: str) -> Any:
        """Find the struct or union of a name, or None."""
        die = self._typedefs.get(name) or self._structs.get(name)
        return None if die is None else self._resolved(die)

    def _resolved(self, die: Any) -> Any:
        """Follow typedefs and qualifiers to the struct, which another unit may have in full."""
        while die is not None and die.tag not in ("DW_TAG_structure_type", "DW_TAG_union_type"):
            if "DW_AT_type" not in die.attributes:
                return None
            die = die.get_DIE_from_attribute("DW_AT_type")
        if die is not None and "DW_AT_declaration" in die.attributes:
            die = self._structs.get(_text(die, "DW_AT_name"))
        return die

    def offset(self, struct: Any, path: str, transparent: tuple[str, ...] = _UNIONS) -> int | None:
        """Where a field lies, ``a.b.c``; what is in a *transparent* union is named without it."""
        if path == "sizeof":
            return int(struct.attributes["DW_AT_byte_size"].value)
        head, _, rest = path.partition(".")
        for member in _members(struct):
            name, inner = _text(member, "DW_AT_name"), self._resolved(member)
            if name == head and "DW_AT_bit_size" not in member.attributes:
                if not rest:
                    return _offset_of(member)
                found = None if inner is None else self.offset(inner, rest, transparent)
                return None if found is None else _offset_of(member) + found
            if name in transparent and head != "u" and inner is not None:
                found = self.offset(inner, path, transparent)
                if found is not None:
                    return _offset_of(member) + found
        return None

    def source(self, struct: Any) -> str:
        """The file that declares a struct, from ``erts/`` on; empty where it is not known."""
        program = struct.dwarfinfo.line_program_for_CU(struct.cu)
        if program is None or "DW_AT_decl_file" not in struct.attributes:
            return ""
        version = program["version"]
        entries, folders = program["file_entry"], program["include_directory"]
        entry = entries[struct.attributes["DW_AT_decl_file"].value - (version < 5)]
        folder = entry.dir_index - (version < 5)
        path = Path(_text(struct.cu.get_top_DIE(), "DW_AT_comp_dir"))
        if folder >= 0:
            path /= folders[folder].decode()
        return str(path / entry.name.decode()).partition("/erts/")[2]

    def erts(self) -> str:
        """The version of ERTS that the file says it is."""
        return self._constant("etp_erts_version").split(b"\0")[0].decode("ascii", "replace")

    def is_jit(self) -> bool:
        """Whether the file says that it is a JIT."""
        return any(self._constant("etp_beamasm"))

    def _constant(self, name: str) -> bytes:
        table: Any = self._elf.get_section_by_name(".symtab")
        found = table.get_symbol_by_name(name) if table else None
        if not found or not isinstance(found[0]["st_shndx"], int):
            raise LayoutError(f"{self._path} does not say which ERTS it is: it has no {name}")
        symbol, section = found[0], self._elf.get_section(found[0]["st_shndx"])
        start = symbol["st_value"] - section["sh_addr"]
        if section["sh_type"] == "SHT_NOBITS":
            raise LayoutError(f"{self._path} has debug information alone: join it with eu-unstrip")
        return bytes(section.data()[start : start + symbol["st_size"]])


def _text(die: Any, attribute: str) -> str:
    found = die.attributes.get(attribute)
    return found.value.decode("utf-8", "replace") if found else ""


def _members(struct: Any) -> Iterator[Any]:
    return (die for die in struct.iter_children() if die.tag == "DW_TAG_member")


def _offset_of(member: Any) -> int:
    found = member.attributes.get("DW_AT_data_member_location")
    return int(found.value) if found else 0


def read_build(path: Path, wanted: Structs) -> Build:
    """Read the *wanted* fields of one emulator. Raises LayoutError."""
    try:
        with path.open("rb") as file:
            return _read_build(DebugInfo(path, file), path, wanted)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from None
    except (ELFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise LayoutError(f"{path}: its debug information cannot be read: {error!r}") from None


def _read_build(info: DebugInfo, path: Path, wanted: Structs) -> Build:
    structs: Structs = {}
    sources: dict[str, str] = {}
    for name, fields in wanted.items():
        found = info.find(name)
        if found is None:
            continue
        wanted_here = [field for field in fields if field not in _INDEXES]
        # Where one field is wanted as that of ``u``, no other is named without it.
        named = any(f.startswith("u.") and info.offset(found, f) is not None for f in wanted_here)
        unions = _UNIONS[:1] if named else _UNIONS
        offsets = {field: info.offset(found, field, unions) for field in wanted_here}
        structs[name] = {field: at for field, at in offsets.items() if at is not None}
        sources[name] = info.source(found)
    if "Process" not in structs:
        raise LayoutError(f"{path} does not describe a process: not the emulator, or part of it")
    process = info.find("Process")
    usdt = info.offset(process, "dt_utag") is not None
    build = ("usdt" if usdt else "jit") if info.is_jit() else "emu"
    return Build(info.erts(), build, structs, sources)


def files() -> dict[int, dict[str, Any]]:
    """The layout files that there are, by release."""
    found = (tomllib.loads(path.read_text("utf-8")) for path in LAYOUTS.glob("otp-*.toml"))
    return {data["release"]: data for data in found}


def structs_of(data: dict[str, Any]) -> Structs:
    """The tables of a file, or of an overlay, that are structs."""
    return {n: t for n, t in data.items() if isinstance(t, dict) and n not in _NO_STRUCTS}


def wanted_fields(releases: dict[int, dict[str, Any]], release: int) -> Structs:
    """Every field that any release is known by, in the order of the nearest."""
    wanted: Structs = {}
    for near in sorted(releases, key=lambda known: (abs(known - release), -known)):
        for struct, fields in structs_of(releases[near]).items():
            wanted.setdefault(struct, {}).update(
                {field: at for field, at in fields.items() if field not in wanted.get(struct, {})}
            )
    return wanted


def version(text: str) -> tuple[int, ...]:
    """Read a version: numbers with dots between."""
    return tuple(int(part) for part in text.split("."))


def difference(old: Structs, new: Structs) -> Structs:
    """Give the fields of *new* that *old* has not, or elsewhere, and -1 for those that are gone."""
    found: Structs = {}
    for struct in old | new:
        before, after = old.get(struct, {}), new.get(struct, {})
        fields = [*before, *(field for field in after if field not in before)]
        changed = {
            field: after.get(field, _ABSENT)
            for field in fields
            if field not in _INDEXES and before.get(field, _ABSENT) != after.get(field, _ABSENT)
        }
        if changed:
            found[struct] = changed
    return found


def laid_over(*layers: Structs) -> Structs:
    """Lay structs over each other, the last on top."""
    found: Structs = {}
    for layer in layers:
        for struct, fields in layer.items():
            found.setdefault(struct, {}).update(fields)
    return found


def complete(tag: str, builds: dict[str, Build], old: dict[str, Any]) -> dict[str, Any]:
    """
    Make the data of a release that one version describes in full.

    *old* is the file of this release, or of the nearest: facts and indexes are taken over, and
    the overlays and versions of this release's own file.
    """
    jit = builds["jit"]
    release = int(tag.partition(".")[0])
    own = old["release"] == release
    data: dict[str, Any] = {
        "tag": f"OTP-{tag}",
        "release": release,
        "erts": old["erts"] if own else [jit.erts, jit.erts],
        "facts": old["facts"],
    }
    for struct, fields in jit.structs.items():
        indexes = {n: at for n, at in old.get(struct, {}).items() if n in _INDEXES}
        if not indexes or "proc" in indexes:
            data[struct] = fields | indexes
    for name in ("usdt", "emu"):
        if name in builds:
            data[name] = _of_structs(difference(jit.structs, builds[name].structs), data)
        elif own and name in old:
            data[name] = old[name]
    data["overlays"] = old.get("overlays", []) if own else []
    return data


def _of_structs(found: Structs, data: dict[str, Any]) -> Structs:
    return {struct: fields for struct, fields in found.items() if struct in data}


def with_overlay(tag: str, builds: dict[str, Build], old: dict[str, Any]) -> dict[str, Any]:
    """Make the data of a release with one more overlay, or a longer one. Raises LayoutError."""
    base, jit = structs_of(old), builds["jit"]
    fields = _of_structs(difference(base, jit.structs), base)
    for name in ("usdt", "emu"):
        if name in builds:
            expected = laid_over(base, old.get(name, {}), fields)
            rest = _of_structs(difference(expected, builds[name].structs), base)
            if rest:
                raise LayoutError(f"the {name} build differs in more than the JIT does: {rest}")
    mine = {"erts": [jit.erts, jit.erts], "otp": [tag, tag]}
    overlays = [dict(part) for part in old.get("overlays", [])]
    ranges = [{"erts": old["erts"], "otp": [old["tag"].removeprefix("OTP-")] * 2}, *overlays]
    here = version(jit.erts)
    for part in ranges:
        if version(part["erts"][0]) <= here <= version(part["erts"][1]):
            if structs_of(part) != fields:
                raise LayoutError(f"ERTS {jit.erts} is described otherwise: {part['erts']}")
            return old
    for part in overlays:
        if structs_of(part) == fields and _next_to(part, here, ranges):
            part["erts"] = [_least(part["erts"][0], jit.erts), _most(part["erts"][1], jit.erts)]
            part["otp"] = [_least(part["otp"][0], tag), _most(part["otp"][1], tag)]
            return old | {"overlays": overlays}
    overlays.append(mine | fields)
    overlays.sort(key=lambda part: version(part["erts"][0]))
    return old | {"overlays": overlays}


def _least(one: str, other: str) -> str:
    return min(one, other, key=version)


def _most(one: str, other: str) -> str:
    return max(one, other, key=version)


def _next_to(part: dict[str, Any], here: tuple[int, ...], ranges: list[dict[str, Any]]) -> bool:
    """Whether no other range begins or ends between *part* and the version *here*."""
    first, last = (version(end) for end in part["erts"])
    low, high = min(first, here), max(last, here)
    return not any(
        low < version(end) < high and not first <= version(end) <= last
        for other in ranges
        for end in other["erts"]
    )


def text_of(data: dict[str, Any], sources: dict[str, str]) -> str:
    """Write a layout file; *sources* are the headers that declare the structs."""
    first, last = data["erts"]
    lines = _HEADER.format(**data, first=first, last=last).splitlines()
    lines += _entries(data["facts"])
    for struct, fields in structs_of(data).items():
        indexes = " (and the indexes of types, by erl_alloc.types)" if "proc" in fields else ""
        lines += ["", f"# {data['tag']} erts/{sources.get(struct, '')}{indexes}", f"[{struct}]"]
        lines += _entries(fields)
    for build in ("usdt", "emu"):
        for struct, fields in data.get(build, {}).items():
            lines += ["", f"[{build}.{struct}]", *_entries(fields)]
    for part in data.get("overlays", []):
        lines += ["", "[[overlays]]"]
        lines += [f'{name} = ["{part[name][0]}", "{part[name][1]}"]' for name in ("erts", "otp")]
        for struct, fields in part.items():
            if isinstance(fields, dict):
                lines += ["", f"[overlays.{struct}]", *_entries(fields)]
    return "\n".join(lines) + "\n"


def _entries(fields: dict[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        key = name if re.fullmatch(r"\w+", name) else f'"{name}"'
        shown = f"0x{value:X}" if name == "map_subtag" else str(value).lower()
        yield f"{key} = {shown}"


def report(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield the differences between two releases, a line for each field."""
    changed = difference(structs_of(old), structs_of(new))
    yield f"{new['tag']} beside {old['tag']}: {sum(map(len, changed.values()))} fields differ"
    for struct, fields in changed.items():
        before = old.get(struct, {})
        for field, at in fields.items():
            yield f"  {struct}.{field}: {before.get(field, _ABSENT)} -> {at}"


def make(tag: str, paths: list[Path]) -> tuple[Path, str, list[str]]:
    """Make the file of one release: path, text, and lines of the report. Raises LayoutError."""
    if not re.fullmatch(r"\d+(\.\d+)+", tag):
        raise LayoutError(f"{tag!r} is no version of OTP, such as 27.3.4.1")
    releases, release = files(), int(tag.partition(".")[0])
    wanted = wanted_fields(releases, release)
    read = [read_build(path, wanted) for path in paths]
    builds = {build.name: build for build in read}
    if len(builds) < len(read) or "jit" not in builds:
        raise LayoutError(f"one JIT without USDT is needed, and others once: {[*builds]}")
    if len({build.erts for build in read}) > 1:
        raise LayoutError(f"these are several versions of ERTS: {[b.erts for b in read]}")
    nearest = min(releases, key=lambda known: (abs(known - release), -known))
    old = releases[nearest]
    path = LAYOUTS / f"otp-{release}.toml"
    if nearest == release and old["tag"] != f"OTP-{tag}":
        data = with_overlay(tag, builds, old)
        lines = [f"OTP-{tag} differs from {old['tag']} in:"]
        lines += [
            f"  {s}: {f}" for s, f in difference(structs_of(old), builds["jit"].structs).items()
        ]
        return path, text_of(data, _sources(path)), lines
    data = complete(tag, builds, old)
    lines = [*report(old, data)]
    if nearest != release:
        lines.append(f"facts are those of {old['tag']}: see docs/otp-release.md for what to check")
    return path, text_of(data, builds["jit"].sources), lines


def _sources(path: Path) -> dict[str, str]:
    """Which header declares each struct, as an own file says it."""
    pattern = re.compile(r"^# OTP-\S+ erts/([^\s,]+).*\n(?:#.*\n)*\[(\w+)\]", re.MULTILINE)
    return {struct: source for source, struct in pattern.findall(path.read_text("utf-8"))}


def main() -> int:
    """The command; returns 0, or 1 where nothing is written."""
    parser = argparse.ArgumentParser(description="Make the layout file of one OTP release.")
    parser.add_argument("otp", metavar="VERSION", help="the version of OTP, such as 27.3.4.1")
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="one build of it each")
    parser.add_argument("--check", action="store_true", help="only say whether the file agrees")
    arguments = parser.parse_args()
    try:
        path, text, lines = make(arguments.otp, arguments.files)
    except LayoutError as error:
        print(f"make_layout: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print("\n".join(lines))  # noqa: T201
    same = False
    with suppress(FileNotFoundError):
        same = path.read_text("utf-8") == text
    if not same and not arguments.check:
        path.write_text(text, "utf-8")
    print(f"{path.name}: {'as it was' if same else 'different' if arguments.check else 'written'}")  # noqa: T201
    return 0 if same or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
