# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import scope_ebpf
from scope_ebpf import events
from scope_ebpf.kernel.bpf.libbpf import library
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes

OBJECTS = Path(scope_ebpf.__file__).parent / "kernel/objects"
PROBES = Path(__file__).parents[2] / "probes"
FAMILIES = sorted({variant.family for variant in events.VARIANTS})
#: include/uapi/linux/bpf.h: BPF_F_NO_PREALLOC
NO_PREALLOC = 1


def programs(path: Path) -> dict[str, str]:
    """
    The programs of an object, and the section of each; tracepoints by their names.
    """
    with path.open("rb") as file:
        elf = ELFFile(file)
        found = {}
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            section = symbol["st_shndx"]
            if symbol["st_info"]["type"] != "STT_FUNC" or not isinstance(section, int):
                continue
            name = elf.get_section(section).name
            if name in ("uprobe", "uretprobe") or name.startswith("tp_btf/"):
                found[symbol.name] = name.removeprefix("tp_btf/")
        return found


def section(variant: events.Variant, hook: events.Hook) -> str:
    """
    What the section of a hook's program is called.
    """
    if variant.via == "tracepoint":
        return hook.name
    return "uretprobe" if hook.returns else "uprobe"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_object_has_the_programs_of_its_hooks_and_no_others(family: str):
    """
    Each hook's program is in its family's object, for an entry, a return or a tracepoint.
    """
    expected = {
        hook.program: section(variant, hook)
        for variant in events.VARIANTS
        if variant.family == family
        for hook in variant.hooks
    }
    assert expected == programs(OBJECTS / f"{family}.bpf.o")


def test_every_probe_is_built():
    """
    Each source has an object, and each object a source.
    """
    sources = {path.name.removesuffix(".bpf.c") for path in PROBES.glob("*.bpf.c")}
    objects = {path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o")}
    assert sources == objects
    assert set(FAMILIES) <= objects


def test_every_object_is_newer_than_what_it_was_built_from():
    """
    No test here looks at an object that was built from another source than the one beside it.
    """
    shared = [*PROBES.glob("include/*.h"), Path(events.__file__)]
    newest = max(path.stat().st_mtime for path in shared)
    stale = [
        path.name
        for path in OBJECTS.glob("*.bpf.o")
        if path.stat().st_mtime
        < max(newest, (PROBES / path.with_suffix(".c").name).stat().st_mtime)
    ]
    assert [] == stale, "run `make objects`"


@pytest.mark.parametrize("family", sorted(path.stem[:-4] for path in OBJECTS.glob("*.bpf.o")))
def test_no_map_is_allocated_while_a_program_runs(family: str):
    """
    Before Linux 6.1 that is unsafe in a program that traces, and loading it makes the kernel warn.
    """
    flags = library().bpf_map__map_flags
    flags.argtypes = [ctypes.c_void_p]
    opened = BpfObject(family, object_bytes(family))
    try:
        late = [name for name, each in opened.maps.items() if flags(each.handle) & NO_PREALLOC]
    finally:
        opened.close()
    assert [] == late


@pytest.mark.parametrize("family", FAMILIES)
def test_every_object_is_under_the_gpl(family: str):
    """
    The kernel gives its helpers to programs under the GPL only, and our sources say so too.
    """
    with (OBJECTS / f"{family}.bpf.o").open("rb") as file:
        assert b"GPL\0" == ELFFile(file).get_section_by_name("license").data()
