# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS, Attachment, Item, Plan
from scope_ebpf.beam.elf.contents import Segment, Symbol, UnreadableElfError
from scope_ebpf.beam.elf.entry import Entry
from scope_ebpf.beam.elf.usdt import Argument
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.observers.session import Session
from scope_ebpf.planning.planner import make_plan
from scope_ebpf.sandbox import code

BASE = 0x400000
NOP = b"\x90"
PUSH = b"\x55"
ENDBR = b"\xf3\x0f\x1e\xfa"
SUB_RSP = b"\x48\x83\xec\x18"
MOV_R8_RDI = b"\x49\x89\xf8"
MOV_RDI_RSI = b"\x48\x89\xf7"
DANGEROUS = ("process__port_unblocked", "global__function__entry")
MANGLED = {
    "beam_jit_remove_message": "_Z23beam_jit_remove_messageP7process",
    "beam_jit_call_nif": "_Z17beam_jit_call_nifP7processPKvPmPFmP18enif_environment_tiS3_EP14mod",
    "beam_jit_call_bif": "_Z17beam_jit_call_bifP7processPmPKvPFmS0_S1_S3_Em",
}
HOOKS = [hook for variant in events.VARIANTS for hook in variant.hooks]
SYMBOLS = [h.name for variant in events.VARIANTS if variant.via == "symbol" for h in variant.hooks]


def function(name: str, address: int) -> Symbol:
    return Symbol(name, address, 16, is_function=True)


@dataclass
class Site:
    name: str
    address: int
    semaphore: int = 0
    arguments: str = ""
    provider: str = "erlang"


@dataclass
class Executable:
    """
    A binary whose bytes lie BASE below their addresses: code, then data.
    """

    segments = (
        Segment(BASE, 0, 0x2000, executable=True),
        Segment(BASE + 0x2000, 0x2000, 0x1000, executable=False, writable=True),
    )
    symbols: dict[str, int] = field(default_factory=dict)
    usdt_sites: tuple[Site, ...] = ()
    code: bytes = PUSH
    #: Functions of which copies are called in their place.
    copied: tuple[str, ...] = ()
    #: Where functions are called, by their name.
    called_at: dict[str, list[int]] = field(default_factory=dict)

    def symbol(self, name: str) -> Symbol | None:
        return function(name, self.symbols[name]) if name in self.symbols else None

    def matching(self, pattern: re.Pattern[str]) -> list[Symbol]:
        return [function(n, a) for n, a in sorted(self.symbols.items()) if pattern.match(n)]

    def file_offset(self, address: int) -> int:
        return address - BASE

    def cheap_entry(self, address: int, size: int) -> Entry:
        return Entry(*code.cheap_entry(self.code.ljust(size, NOP)[:size]))

    def calls(self, address: int, size: int) -> list[tuple[int, int, bool]]:
        found = code.calls(self.code.ljust(size, NOP)[:size], address)
        found += [(address, target) for target in self._always_called(address)]
        return [(address, target, self._is_named(target)) for address, target in found]

    def callers(self, functions: list[int]) -> list[list[int]]:
        names = {address: name for name, address in self.symbols.items()}
        return [self.called_at[names[function]] for function in functions]

    def _always_called(self, address: int) -> list[int]:
        return [
            self.symbols[hook.name]
            for hook in HOOKS
            if hook.called_by and self.symbols.get(hook.called_by) == address
            if hook.name in self.symbols and hook.name not in self.copied
        ]

    def _is_named(self, address: int) -> bool:
        return any(0 <= address - start < 16 for start in self.symbols.values())

    def read(self, address: int, size: int) -> bytes:
        sites = [site.address for site in self.usdt_sites]
        return (NOP if address in sites else self.code).ljust(size, NOP)[:size]


def stock(*without: str) -> Executable:
    """
    A binary with every function of every attach variant, except those named.
    """
    names = [MANGLED.get(name, name) for name in dict.fromkeys(SYMBOLS) if name not in without]
    return Executable({name: BASE + 16 * n for n, name in enumerate(names, 1)})


def with_probes(symbols: bool = False) -> Executable:
    """
    A binary with one site of every allowed probe, and of those that must never be attached.
    """
    sites = [
        Site(name, BASE + 0x1000 + n, BASE + 0x2000 + 2 * n, "8@%rax 4@$1")
        for n, name in enumerate(sorted(events.USDT_ALLOWED) + list(DANGEROUS))
    ]
    return Executable(stock().symbols if symbols else {}, tuple(sites))


def item(binary: Executable, event: str, flavor: str = "jit", via: str = "auto", **more) -> Item:
    (only,) = make_plan(binary, flavor, [event], via, **more).items
    return only


def test_a_stock_binary_is_seen_by_its_symbols():
    """
    On a binary with all functions every event of the VM is seen by symbols, without an excuse.
    """
    plan = make_plan(
        stock(), "jit", EVENTS, settings=["dsig_send_start", "dist_sysname", "process_hend"]
    )
    expected = dict.fromkeys(EVENTS, ("symbol", "")) | {"thread": ("tracepoint", "")}
    assert expected == {i.event: (i.via, i.reason) for i in plan.items}


def test_the_kernels_own_events_need_nothing_of_the_binary():
    """
    The kernel's tracepoints are available for any VM, whatever kind of hook is asked for.
    """
    found = item(Executable(), "thread", via="usdt")
    hooks = [(a.program, a.name, a.tracepoint) for a in found.attachments]
    expected = [("switched", "sched_switch", True), ("woken", "sched_wakeup", True)]
    assert ("tracepoint", expected) == (found.via, hooks)


def test_what_keeps_no_budget_is_left_out_and_the_reason_names_the_option():
    """
    A budgeted plan has no hook at every switch of the host; everything else is unchanged.
    """
    plan = make_plan(
        stock(), "jit", EVENTS, settings=["dsig_send_start", "dist_sysname", "process_hend"]
    )
    governed = plan.governable()
    off = {item.event: item.reason for item in governed.items if not item.attachments}
    assert ["thread"] == list(off)
    assert "--exact" in off["thread"]
    assert [i for i in plan.items if i.event != "thread"] == [
        i for i in governed.items if i.event != "thread"
    ]


def calling(*targets: int) -> Executable:
    """
    A binary whose erts_send_message, at BASE + 16, pushes and then calls each of *targets*.
    """
    names = {"erts_send_message": BASE + 16, "erts_queue_proc_message": BASE + 0x800}
    code, end = PUSH, BASE + 16 + len(PUSH)
    for target in targets:
        end += 5
        code += b"\xe8" + (target - end).to_bytes(4, "little", signed=True)
    return Executable(names, code=code)


def test_a_send_is_seen_where_it_queues_its_message():
    """
    The breakpoint is on the call that queues the message, and the program gets its register.
    """
    (hook,) = item(calling(BASE + 0x700, BASE + 0x800), "send").attachments
    assert {"send_message_register": "rcx", "send_term_register": "r8"} == dict(hook.registers)
    assert (22, BASE + 22, "send_local") == (hook.offset, hook.address, hook.program)


@pytest.mark.parametrize("calls", [(), (BASE + 0x700,), (BASE + 0x800, BASE + 0x800)])
def test_a_send_that_does_not_queue_by_one_call_is_seen_at_its_entry(
    calls: tuple[int, ...],
):
    """
    Where that call is not there, or is there twice, sends count all the same, without the message.
    """
    (hook,) = item(calling(*calls), "send").attachments
    assert (16, ()) == (hook.offset, hook.registers)


def to_alias(*targets: int, **names: int) -> Attachment:
    """
    The hook of a reply, in a function that calls *targets*; *names* are the functions there.
    """
    binary = calling(*targets)
    more = {"erts_proc_sig_send_to_alias": BASE + 16, "copy_struct_x": BASE + 0x900}
    binary.symbols = {"erts_send_message": BASE + 0x40, **more, **names}
    return item(binary, "send").attachments[1]


@pytest.mark.parametrize("names", [{}, {"proc_queue_signal": BASE + 0x700}])
def test_a_message_to_an_alias_is_seen_where_it_is_queued(names: dict[str, int]):
    """
    The function that queues it is local to its file: by its name, or as the only one without.
    """
    hook = to_alias(BASE + 0x900, BASE + 0x700, BASE + 0x900, **names)
    assert (("send_alias_register", "rcx"),) == hook.registers
    assert ("send_alias", BASE + 22) == (hook.program, hook.address)


def test_a_function_that_was_found_calls_others_without_names(monkeypatch: pytest.MonkeyPatch):
    """
    In a program that hides its names, the only call of a function without one may be any call.
    """

    def found(self: Executable, name: str) -> Symbol | None:
        start = self.symbols.get(name)
        return Symbol(name, start, 16, True, "reference") if start else None

    monkeypatch.setattr(Executable, "symbol", found)
    monkeypatch.setattr(Executable, "is_start", lambda *_: True, raising=False)
    hook = to_alias(BASE + 0x900, BASE + 0x700, BASE + 0x900)
    assert (BASE + 16, ()) == (hook.address, hook.registers)
    hook = to_alias(BASE + 0x700, proc_queue_signal=BASE + 0x700)
    assert BASE + 17 == hook.address


def test_a_call_that_lies_beyond_its_function_is_no_place_for_a_hook(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    A parser that names an address elsewhere gets no hook there.
    """
    outside = [(BASE + 0x400, BASE + 0x800, True)]
    monkeypatch.setattr(Executable, "calls", lambda *_: outside)
    binary = calling(BASE + 0x800)
    assert "is not within erts_send_message" in item(binary, "send").reason


@pytest.mark.parametrize("calls", [(), (BASE + 0x900,), (BASE + 0x700, BASE + 0x710)])
def test_a_message_to_an_alias_counts_at_the_entry_where_that_is_not_clear(calls: tuple[int, ...]):
    """
    With no call of a function without a name, or two of them, nothing is guessed.
    """
    hook = to_alias(*calls)
    assert (BASE + 16, ()) == (hook.address, hook.registers)


def test_an_attachment_says_where_in_the_file_it_goes():
    """
    A symbol becomes an offset in the file, for its entry and its return.
    """
    binary = Executable({"erl_create_process": BASE + 0x123})
    expected = (
        Attachment("spawn_entry", "process", "erl_create_process", 0x123, BASE + 0x123),
        Attachment(
            "spawn_return", "process", "erl_create_process", 0x123, BASE + 0x123, returns=True
        ),
    )
    assert Item("spawn", "symbol", "erl_create_process", expected, "") == item(binary, "spawn")


def test_a_missing_symbol_makes_an_event_unavailable_and_is_named():
    """
    Without its function an event is unavailable; the reason names the missing symbol and probe.
    """
    expected = Item(
        "exit",
        "unavailable",
        "",
        (),
        "the binary has no function symbol erts_do_exit_process; "
        "the binary has no USDT probe process__exit",
    )
    assert expected == item(stock("erts_do_exit_process"), "exit")


def test_one_missing_function_of_several_makes_the_variant_unavailable():
    """
    A collection that one of its functions would hide is not counted by the others alone.
    """
    found = item(stock("erts_garbage_collect_hibernate"), "gc")
    assert ("unavailable", ()) == (found.via, found.attachments)


def test_an_optional_function_may_be_missing():
    """
    OTP 28 has no function for sends to remote names, and sends are seen all the same.
    """
    found = item(stock("erts_dsig_send_reg_msg"), "send")
    assert "symbol" == found.via
    assert "erts_dsig_send_reg_msg" not in found.hook


def test_a_mangled_name_is_found_by_its_plain_one():
    """
    A C++ function is found under the plain name, which the plan shows.
    """
    found = item(stock(), "receive")
    assert ("symbol", "beam_jit_remove_message") == (found.via, found.hook)


def test_a_plain_name_comes_before_a_mangled_one():
    """
    OTP 24 has the same functions in C: the plain name is taken as it is.
    """
    found = item(Executable({"beam_jit_remove_message": BASE + 1}), "receive")
    assert [1] == [a.offset for a in found.attachments]


def test_a_longer_mangled_name_is_another_function():
    """
    A function whose name only begins with that of a hook is another one.
    """
    names = {"_Z31beam_jit_remove_message_quicklyP7process": BASE + 1}
    assert "unavailable" == item(Executable(names), "receive").via


def test_probes_are_taken_where_there_are_no_symbols():
    """
    A USDT build without symbols is seen by its probes, and the plan says why not by symbols.
    """
    found = item(with_probes(), "hibernate")
    assert ("usdt", "process__hibernate", "the binary has no function symbol erts_hibernate") == (
        found.via,
        found.hook,
        found.reason,
    )


def test_symbols_come_before_probes():
    """
    Where both kinds of hook are available the symbol is used, which is cheaper.
    """
    assert "symbol" == item(with_probes(symbols=True), "exit").via


def test_a_function_that_begins_expensively_is_hooked_behind_that():
    """
    Where the first instruction takes a second trap the hook is on the next cheap one, and the
    program gets the register in which its argument is there.
    """
    code = MOV_R8_RDI + MOV_RDI_RSI + PUSH
    binary = Executable({"copy_in_registers": BASE + 64, "erts_schedule": BASE + 128}, code=code)
    hook, out = item(binary, "schedule").attachments
    assert (64 + 6, BASE + 64 + 6) == (hook.offset, hook.address)
    assert (("schedule_in_register", "r8"),) == hook.registers
    assert (128, ()) == (out.offset, out.registers)


@pytest.mark.parametrize(
    ("code", "offsets"),
    [(ENDBR + PUSH, [4, 4]), (SUB_RSP + PUSH, [4, 0]), (ENDBR + MOV_RDI_RSI + PUSH, [0, 0])],
)
def test_a_return_is_hooked_where_the_return_address_is_on_top(code: bytes, offsets: list[int]):
    """
    The kernel finds it there at the start, and behind an instruction that does nothing.
    """
    binary = Executable({"erts_finish_loading": BASE + 64}, code=code)
    hooks = item(binary, "code_load").attachments
    assert [64 + offset for offset in offsets] == [hook.offset for hook in hooks]


def test_every_site_of_a_probe_is_attached():
    """
    A probe with several sites is attached at each, with its semaphore and its arguments.
    """
    sites = (
        Site("message__send", BASE + 1, BASE + 0x2100, "8@%rax"),
        Site("message__send", BASE + 2, BASE + 0x2100, "8@$7"),
        Site("message__send", BASE + 3, 0, ""),
        Site("message__send", BASE + 4, BASE + 0x2100, "8@%rax", provider="other"),
    )
    rax = Argument("register", 8, is_signed=False, register="rax")
    seven = Argument("constant", 8, is_signed=False, value=7)
    expected = [(1, 0x2100, (rax,)), (2, 0x2100, (seven,)), (3, 0, ())]
    found = item(Executable({}, sites), "send").attachments
    assert expected == [(a.offset, a.semaphore, a.arguments) for a in found]


def test_a_probe_whose_arguments_are_not_understood_is_not_attached():
    """
    A site with an unknown operand makes USDT unavailable for it, with the operand in the reason.
    """
    binary = Executable({}, (Site("process__exit", BASE + 1, 0, "8@%xmm0"),))
    found = item(binary, "exit", via="usdt")
    assert ("unavailable", "process__exit: unknown register in USDT operand: '%xmm0'") == (
        found.via,
        found.reason,
    )


@pytest.mark.parametrize(
    "refusal", events.UNAVAILABLE, ids=lambda r: f"{r.event}-{r.via}-{r.flavor}"
)
def test_a_variant_that_is_wrong_on_a_build_is_refused(refusal: events.Unavailable):
    """
    A variant that OTP breaks on a build is not used even if it has all its hooks; the plan has why.
    """
    binary = with_probes(symbols=True)
    found = item(binary, refusal.event, refusal.flavor or "jit", refusal.via, settings=["x"])
    assert ("unavailable", refusal.reason) == (found.via, found.reason)


def test_scheduling_of_the_interpreter_is_seen_by_probes():
    """
    The interpreter has no function for scheduling in, so a USDT build of it takes the probes.
    """
    found = item(with_probes(symbols=True), "schedule", "emu")
    assert ("usdt", "process__scheduled + process__unscheduled") == (found.via, found.hook)


@pytest.mark.parametrize("via", ["symbol", "usdt"])
def test_a_forced_kind_of_hook_excludes_the_other(via: str):
    """
    ``--via`` uses that kind of hook only, and no reason names the other.
    """
    plan = make_plan(
        with_probes(symbols=True), "jit", EVENTS, via, ["dsig_send_start", "dist_sysname"]
    )
    assert {via} == {i.via for i in plan.items} - {"unavailable", "tracepoint"}
    assert all(a.semaphore == 0 for a in plan.attachments) is (via == "symbol")


def test_a_variant_that_needs_an_unknown_setting_is_not_used():
    """
    A busy distribution port is recognized by an address, without which it is not counted.
    """
    found = item(stock(), "dist_busy", via="symbol")
    assert ("unavailable", "dsig_send_start could not be found in the target") == (
        found.via,
        found.reason,
    )
    known = item(
        stock(),
        "dist_busy",
        via="symbol",
        settings=["dsig_send_start", "dist_sysname", "process_hend"],
    )
    assert known.hook.startswith("erts_suspend")


def test_events_come_in_one_order():
    """
    A plan has its events in the order of the description, however they were asked for.
    """
    plan = make_plan(stock(), "jit", ["gc", "exit", "spawn"])
    assert ["spawn", "exit", "gc"] == [i.event for i in plan.items]
    assert ["spawn", "exit", "gc"] == [kind.name for kind in plan.kinds]


def test_what_costs_much_is_on_request_only():
    """
    All events are on but long calls, with a return probe each, threads, packets and marks.
    """
    many = {"dist_out", "dist_in", "mark_callback", "mark_function"}
    assert {"long_call", "thread"} | many == set(EVENTS) - set(DEFAULT_EVENTS)


@pytest.mark.parametrize("flavor", ["jit", "emu"])
@pytest.mark.parametrize("via", ["auto", "symbol", "usdt"])
@pytest.mark.parametrize("symbols", [True, False])
def test_the_dangerous_probes_are_in_no_plan(flavor: str, via: str, symbols: bool):
    """
    The probes that hang or crash a VM are planned on no build, whatever is asked for.
    """
    plan = make_plan(with_probes(symbols), flavor, EVENTS, via, ["dsig_send_start", "dist_sysname"])
    assert [] == [a.name for a in plan.attachments if a.name in DANGEROUS]


def test_the_dangerous_probes_are_in_no_list():
    """
    The probes that hang or crash a VM are in no attach variant, no hook and no allow-list.
    """
    assert set() == set(DANGEROUS) & ({h.name for h in HOOKS} | events.USDT_ALLOWED)


def test_the_allow_list_is_all_that_probes_are_attached_to():
    """
    The allow-list is exactly this one, so that a new probe is a decision and not an accident.
    """
    expected = """
        dist__output dist__outputv gc_major__end gc_major__start gc_minor__end gc_minor__start
        message__receive message__send port__busy port__exit port__not_busy port__open
        process__exit process__hibernate process__scheduled process__spawn process__unscheduled
    """
    assert expected.split() == sorted(events.USDT_ALLOWED)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: f"{h.program}-{h.name}")
def test_no_hook_is_a_pattern(hook: events.Hook):
    """
    Every hook names one function or probe; there is no wildcard.
    """
    assert re.fullmatch(r"[a-z][a-z0-9_]*", hook.name)


def test_an_event_of_which_a_hook_could_not_be_attached_is_not_counted():
    """
    If the kernel refuses one hook of several, the event is unavailable and says why; others stay.
    """
    plan = make_plan(stock(), "jit", ["spawn", "exit"])
    refused = plan.items[0].attachments[1]
    reason = "erl_create_process could not be attached (no space left)"
    expected = Plan((Item("spawn", "unavailable", "", (), reason), plan.items[1]))
    assert expected == plan.without({refused: "no space left"})
    assert plan == plan.without({})


@pytest.mark.parametrize("name", [*DANGEROUS, "process__*", "catclose"])
@pytest.mark.parametrize("arguments", [(), (Argument("constant", 8, is_signed=False),)])
def test_a_session_refuses_what_is_not_on_the_list(name: str, arguments: tuple):
    """
    A plan that was not made by the planner cannot attach to names that are not on the list either.
    """
    hook = Attachment("exit_usdt", "process", name, 1, BASE, semaphore=2, arguments=arguments)
    plan = Plan((Item("exit", "usdt", name, (hook,), ""),))
    with pytest.raises(HostError) as error:
        Session(plan, 1, 0, np.zeros((), events.SETTINGS))
    assert f"{name} is not on the list of what we may attach to" == str(error.value)


@pytest.mark.parametrize("missing", ["file_offset", "cheap_entry"])
def test_a_function_outside_the_file_makes_its_event_unavailable(
    monkeypatch: pytest.MonkeyPatch, missing: str
):
    """
    What a broken file says of one function costs the events that need it, with the reason.
    """

    def fail(self: Executable, address: int, *size: int) -> int:
        raise UnreadableElfError(f"address {address:#x} is not in the file")

    monkeypatch.setattr(Executable, missing, fail)
    found = item(stock(), "spawn" if missing == "file_offset" else "exit", via="symbol")
    assert "unavailable" == found.via
    assert "is not in the file" in found.reason


def unproven(**changed) -> Executable:
    """
    A binary with one function and one probe, of which something is not as it should be.
    """
    binary = Executable(
        {"erts_hibernate": BASE + 16},
        (Site("process__hibernate", BASE + 0x40, BASE + 0x2000, ""),),
    )
    for name, value in changed.items():
        setattr(binary, name, value)
    return binary


DATA = (Segment(BASE, 0, 0x3000, executable=False, writable=True),)
CODE = (Segment(BASE, 0, 0x3000, executable=True),)
SHORT = (Segment(BASE, 0, 24, executable=True),)


@pytest.mark.parametrize(
    ("symbol", "segments", "why"),
    [
        (Symbol("erts_hibernate", BASE + 16, 0, is_function=True), CODE, "has a size"),
        (Symbol("erts_hibernate", BASE + 16, 16, is_function=False), CODE, "has a size"),
        (Symbol("erts_hibernate", BASE + 16, 16, is_function=True), DATA, "code of the file"),
        (Symbol("erts_hibernate", BASE + 16, 16, is_function=True), SHORT, "code of the file"),
        (Symbol("erts_hibernate", BASE + 0x9000, 16, is_function=True), CODE, "code of the file"),
    ],
    ids=["no size", "no function", "in data", "longer than its segment", "outside"],
)
def test_a_function_that_the_file_does_not_show_has_no_hook(symbol, segments, why):
    """
    A name alone makes no function: without a size, or outside of code, nothing is attached to it.
    """
    binary = unproven(symbol=lambda _name: symbol, segments=segments)
    found = item(binary, "hibernate", via="symbol")
    assert ("unavailable", ()) == (found.via, found.attachments)
    assert why in found.reason


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"segments": DATA}, "the site at 0x400040 does not lie in code of the file"),
        ({"segments": CODE}, "the semaphore at 0x402000 does not lie in data"),
        ({"read": lambda _address, size: PUSH * size}, "the site at 0x400040 is no nop"),
    ],
    ids=["site in data", "semaphore in code", "no nop"],
)
def test_a_probe_that_the_file_does_not_show_is_not_attached(changed, why):
    """
    A note may name any address: its site must be a nop in code, its semaphore data.
    """
    found = item(unproven(**changed), "hibernate", via="usdt")
    assert ("unavailable", f"process__hibernate: {why}") == (found.via, found.reason)
    assert "usdt" == item(unproven(), "hibernate", via="usdt").via


@pytest.mark.parametrize(
    ("event", "name", "caller"),
    [
        ("port_busy", "set_busy_port", "erts_deliver_port_exit"),
        ("dist_busy", "erts_suspend", "erts_dsig_send"),
    ],
)
def test_a_function_of_which_copies_are_called_is_refused(event: str, name: str, caller: str):
    """
    Where its caller does not call it, calls would be missed; without such a caller it is used.
    """
    known = ["dsig_send_start"]
    symbols = stock().symbols | {"erts_dsig_send": BASE + 0x800}
    whole = Executable(symbols)
    assert "symbol" == item(whole, event, settings=known).via
    copied = item(Executable(symbols, copied=(name,)), event, settings=known)
    assert ("unavailable", True) == (
        copied.via,
        copied.reason.startswith(f"{name}: {caller} does not call it in this build"),
    )
    alone = Executable({key: at for key, at in symbols.items() if key != caller}, copied=(name,))
    assert "symbol" == item(alone, event, settings=known).via


BUSY, CLOSES = BASE + 0x800, BASE + 0x900
DIST, TASKS = "erts_dist_port_not_busy", "erts_port_task_abort_nosuspend_tasks"


@pytest.mark.parametrize(
    ("dist", "tasks", "served"),
    [
        ([BUSY + 1, CLOSES + 1], [BUSY + 9], True),
        ([BUSY + 1, CLOSES + 1], [BUSY + 9, CLOSES + 16], False),
        ([BUSY + 1, CLOSES + 1, BASE + 0x700], [BUSY + 9], False),
        ([BUSY + 1], [BUSY + 9], False),
        ([CLOSES + 1], [BUSY + 9], False),
        ([BUSY + 1, CLOSES + 1], [], False),
        ([], [], False),
        ([BUSY + 1, CLOSES + 1], None, False),
    ],
    ids=[
        *("one copy", "behind the caller", "a second copy", "no copy", "only a copy"),
        *("one mark inlined", "both marks inlined", "one mark unknown"),
    ],
)
def test_one_copy_of_a_function_is_counted_where_it_is(dist, tasks, served):
    """
    What only the function calls shows its copies: one in its caller has a hook of its own there,
    and any other one is refused.
    """
    symbols = stock().symbols | {"set_busy_port": BUSY, "erts_deliver_port_exit": CLOSES}
    symbols |= {DIST: BASE + 0xA00, TASKS: BASE + 0xB00}
    called_at = {DIST: dist, TASKS: tasks}
    if tasks is None:
        del symbols[TASKS]
    whole = item(Executable(symbols, called_at=called_at), "port_busy")
    assert ["port_busy_entry"] == [found.program for found in whole.attachments]
    copied = Executable(symbols, copied=("set_busy_port",), called_at=called_at)
    found = item(copied, "port_busy", settings=["port_state", "port_connected"])
    programs = [(one.program, one.name) for one in found.attachments]
    assert programs == served * [
        ("port_busy_entry", "set_busy_port"),
        ("port_busy_copy", "erts_deliver_port_exit"),
    ]
    assert served or "whose compiler has made copies of it" in found.reason
    unknown = item(copied, "port_busy")
    assert not unknown.attachments
    assert not served or "port_state, port_connected could not be found" in unknown.reason
