# SPDX-License-Identifier: Apache-2.0
"""
Links without a VM: where counters lie, what sockets say, rates, names of peers, the table.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import replace
from types import SimpleNamespace

import documents
import numpy as np
import pytest

from scope_ebpf import sockets
from scope_ebpf.beam.links.carriers import CarrierPorts
from scope_ebpf.beam.links.entries import Link, LinksReading
from scope_ebpf.beam.links.ports import Port, Traffic, counters_at
from scope_ebpf.beam.links.ticks import _STANDS, TickReader, Ticks
from scope_ebpf.beam.memory import search
from scope_ebpf.daemon.readings.peers import MOST, OTHER, Peers
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.links import Links, Pair, Row, Sender
from scope_ebpf.runs import links as runs
from scope_ebpf.sinks.links import lines

LINK = Link(
    entry=1 << 20, connection=7, peer="b@two", creation=3, state="connected", kind="visible",
    busy=False, queued=0, packets_in=5, packets_out=6, port=None, process=None, suspended=(),
)  # fmt: skip


def linked(number: int, received: int = 0, sent: int = 0, **changed: object) -> Link:
    """
    The link to n*number*, with what its socket counts.
    """
    port = Port(number << 8 | 7, 0, 3, 19, Traffic(received, 1, sent, 1))
    return replace(LINK, entry=number, peer=f"n{number}@host", port=port, **changed)


# ---------------------------------------------------------------------------------------- ticks


PID, TEXTS = 7 << 4 | 3, ("state", "tick", "b@two", "c@three")
HEND = 0x10000


class Watching:
    """
    The process of a link in memory: its records lie on its heap, its stack has the last words.
    """

    def __init__(self, *records: list[int], stack_words: int = 20) -> None:
        self.words: dict[int, int] = {}
        for number, record in enumerate(records, 1):
            at = 0x1000 + 0x100 * number
            self.words[HEND - 8 * number] = at | 2
            self.words |= {at + 8 * index: word for index, word in enumerate(record)}
        self.row = {"id": PID, "hend": HEND, "stack_words": stack_words}
        self.looks = 0

    def gather(self, addresses: np.ndarray, size: int):
        rows = [[self.words.get(at + by, 0x3B) for by in range(0, size, 8)] for at in addresses]
        raw = np.array(rows, np.uint64).reshape(-1, size // 8)
        return raw.view(np.uint8), np.ones(len(raw), bool)

    def slots_of(self, pids: np.ndarray):
        return pids

    def at(self, _slots: object):
        names = sorted({*self.row, *_STANDS})
        row = np.array(
            [tuple(self.row.get(name, self.looks * (name == "htop")) for name in names)],
            [(name, np.uint64) for name in names],
        )
        self.looks += self.row.get("moves", 0)
        return SimpleNamespace(rows=row)

    def texts(self, indices: list[int]):
        return {index: dict(enumerate(TEXTS)).get(index) for index in indices}


def atom(text: str) -> int:
    return TEXTS.index(text) << 6 | 0x0B


def small(value: int) -> int:
    return (value << 4 | 0xF) & (1 << 64) - 1


def state(peer: str = "b@two", limit: int = 4) -> list[int]:
    """
    A record of ten fields.
    """
    return [11 << 6, atom("state"), PID, atom(peer), small(limit), *[0x3B] * 7]


def tick(tick: int, ticked: int) -> list[int]:
    """
    A record of read and written packets, this tick, and the last one at which something had come.
    """
    return [5 << 6, atom("tick"), small(123), small(456), small(tick), small(ticked)]


def missed(watching: Watching) -> Ticks | None:
    """
    What is read of it.
    """
    return TickReader(watching, watching, watching).of({PID: "b@two"}).get(PID)


@pytest.mark.parametrize(
    ("limit", "at", "ticked", "found"),
    [(4, 0, 0, 0), (4, 3, 1, 2), (4, 0, 4, 0), (4, 1, 2, 3), (23, 5, 20, 8)],
)
def test_ticks_are_those_since_something_came(limit: int, at: int, ticked: int, found: int):
    """
    Both numbers begin again at the limit, at which the link is lost.
    """
    assert missed(Watching(state(limit=limit), tick(at, ticked))) == Ticks(found, limit)


@pytest.mark.parametrize(
    "watching",
    [
        Watching(tick(3, 1)),
        Watching(state()),
        Watching(state("c@three"), tick(3, 1)),
        Watching(state(), tick(3, 1), tick(2, 1)),
        Watching(state(limit=3), tick(2, 1)),
        Watching(state(limit=1 << 40), tick(3, 1)),
        Watching(state(), tick(4, 1)),
        Watching(state(), tick(3, -1)),
        Watching([*state()[:4], 0x3B, *state()[5:]], tick(3, 1)),
        Watching(state(), tick(3, 1), stack_words=1),
        Watching(state(), tick(3, 1), stack_words=65),
    ],
    ids=[
        "no state", "no tick", "another peer", "two ticks", "few", "many", "at its limit",
        "negative", "no number", "below its stack", "deep",
    ],
)  # fmt: skip
def test_what_is_no_state_of_a_link_has_no_ticks(watching: Watching):
    """
    One record of each kind, of this peer, within what OTP allows: or nothing.
    """
    assert missed(watching) is None


def test_ticks_of_a_process_that_ran_meanwhile_are_left_out():
    """
    Its heap grew while it was read.
    """
    watching = Watching(state(), tick(3, 1))
    watching.row["moves"] = 8
    assert missed(watching) is None


# ----------------------------------------------------------------------------------- TCP driver


COUNTERS = struct.pack("<QQQddQQQQd", 357, 7, 100, 51.0, 9.5, 19575, 10 | 1 << 12, 505, 97, 38.8)


def descriptor(at: int, counters: bytes = COUNTERS) -> bytes:
    """
    A driver's struct of noise with counters *at* one place.
    """
    noise = bytearray(b"\x5a" * 720)
    noise[at : at + len(counters)] = counters
    return bytes(noise)


@pytest.mark.parametrize("at", [560, 568])
def test_counters_are_found_by_what_holds_of_them(at: int):
    """
    In one place of all descriptors: more bytes than packets, and no mean above the largest.
    """
    assert counters_at([descriptor(at)]) == at
    assert counters_at([descriptor(at), descriptor(at)]) == at


def test_counters_in_no_place_or_in_two_are_not_read():
    """
    Two descriptors that disagree, two places in one, and a largest packet larger than all bytes.
    """
    assert counters_at([descriptor(560), descriptor(568)]) is None
    twice = bytearray(descriptor(560))
    twice[400:480] = COUNTERS
    assert counters_at([bytes(twice)]) is None
    wrong = struct.pack("<QQQ", 357, 7, 358) + COUNTERS[24:]
    assert counters_at([descriptor(560, wrong)]) is None
    assert counters_at([bytes(720)]) is None


# -------------------------------------------------------------------------------- hidden lists


BASE, ENTRIES, NODE = 0x10000, 0x20000, 0x30000


class Variables:
    """
    Words at addresses, and a layout in which fields are 8 bytes apart.
    """

    def __init__(self, words: dict[int, int]) -> None:
        self.memory, self.layout, self._words = self, self, words

    def find(self, _: str) -> int:
        return BASE

    def offset(self, _: str, field: str) -> int:
        return 8 * ("next", "sysname", "state", "dist_entry").index(field)

    def u64(self, address: int) -> int:
        return self._words.get(address, 0)

    u32 = u64

    def words(self, address: int, count: int):
        values = [self.u64(address + 8 * at) for at in range(count)]
        return SimpleNamespace(tolist=lambda: values)


def variables(count: int = 2, state: int = 2, idle: int = 1) -> Variables:
    """
    This node, its entry, four counts, four lists; *count* of visible nodes, of which there are two.
    """
    entries = [ENTRIES + 64 * at for at in range(3)]
    words = [NODE, entries[0], idle, 0, count, 0, entries[0], 0, entries[1], 0]
    found = {BASE + 8 * at: word for at, word in enumerate(words)}
    found[NODE + 24] = entries[0]
    for at, entry in enumerate(entries):
        found |= {
            entry: entries[2] if at == 1 else 0,
            entry + 8: 0x4B,
            entry + 16: state if at else 0,
        }
    return Variables(found)


def test_hidden_lists_are_found_behind_this_node():
    """
    The heads of pending, visible and hidden nodes are the third to fifth of what follows.
    """
    found = {n: search.SEARCHES[f"erts_{n}_dist_entries"] for n in ("pending", "visible", "hidden")}
    assert {name: look(variables()) for name, look in found.items()} == {
        "pending": BASE + 56, "visible": BASE + 64, "hidden": BASE + 72,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"count": 1}, {"count": 3}, {"state": 1}, {"idle": 0}])
def test_what_is_behind_this_node_and_no_list_is_not_taken(wrong: dict[str, int]):
    """
    A list that is longer or shorter than its count, in another state, or without this node.
    """
    assert search.SEARCHES["erts_visible_dist_entries"](variables(**wrong)) is None


# -------------------------------------------------------------------------------------- sockets


def answer(inode: int, info: bytes = b"") -> bytes:
    """
    An inet_diag_msg with one attribute.
    """
    ends = struct.pack(">HH16s16sI8s", 4369, 9100, b"\x7f\0\0\1", b"\x7f\0\0\2", 0, b"cookie!!")
    head = struct.pack("<BBBB", socket.AF_INET, 1, 0, 0) + ends
    attribute = struct.pack("<HH", 4 + len(info), 2) + info
    return head + struct.pack("<IIIII", 0, 3, 5, 0, inode) + attribute


def test_a_socket_is_read_from_the_answer_of_the_kernel():
    """
    Its ends, its queues, and figures of tcp_info; none for what an old kernel leaves out.
    """
    info = bytearray(120)
    struct.pack_into("<II", info, 68, 250, 100)
    struct.pack_into("<I", info, 100, 23)
    found = sockets.parsed(answer(97, bytes(info)))
    assert (found.inode, found.state) == (97, "established")
    assert (found.local, found.remote) == ("127.0.0.1:4369", "127.0.0.2:9100")
    assert (found.receive_queue_bytes, found.send_queue_bytes) == (3, 5)
    assert (found.info["rtt_seconds"], found.info["retransmits"]) == (0.00025, 23)
    assert found.info["send_window_bytes"] is None


@pytest.mark.parametrize("size", [0, 3, 71])
def test_a_short_answer_is_no_socket(size: int):
    """
    What is cut anywhere before its inode is left out.
    """
    assert sockets.parsed(answer(97)[:size]) is None


def test_sockets_of_this_process_are_found_and_asked_for_alone(monkeypatch: pytest.MonkeyPatch):
    """
    The second look lists nothing: it asks for the socket that the first one has found.
    """
    if os.geteuid():
        pytest.skip("entering a network namespace takes root")
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as ends:
        near = ends.enter_context(socket.create_connection(server.getsockname()))
        far = ends.enter_context(server.accept()[0])
        looks = sockets.Sockets(os.getpid(), lambda: None)
        ends.callback(looks.close)
        found = looks.of({1: near.fileno(), 2: far.fileno(), 3: server.fileno(), 4: 9999})
        assert found.keys() == {1, 2}
        assert found[1].remote == found[2].local == f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(sockets.Sockets, "_searched", lambda *_: pytest.fail("listed"))
        far.sendall(b"x" * 23)
        assert looks.of({1: near.fileno()})[1].receive_queue_bytes == 23


def test_a_namespace_with_sockets_without_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    """
    No more bytes of an answer are read than a bound, whatever else the kernel would say.
    """
    message = answer(97)
    part = struct.pack("<IHHII", 16 + len(message), 20, 2, 1, 0) + message
    read = []

    class Endless:
        def send(self, _: bytes) -> None: ...

        def recv(self, size: int) -> bytes:
            read.append(size)
            return part

        def close(self) -> None: ...

    monkeypatch.setattr(sockets, "_MOST", 64 * len(part))
    looks = sockets.Sockets(os.getpid(), lambda: None)
    monkeypatch.setattr(looks, "_opened", Endless)
    with socket.socket() as one, pytest.raises(ReadRefusedError, match="has sockets for more"):
        looks.of({1: one.fileno()})
    assert len(read) == 64


def test_a_process_that_is_another_now_is_not_looked_at():
    """
    The check comes after its descriptors were read, and before its namespace is entered.
    """

    def check() -> None:
        raise ReadRefusedError("another one")

    with socket.socket() as one, pytest.raises(ReadRefusedError, match="another one"):
        sockets.Sockets(os.getpid(), check).of({1: one.fileno()})


# ----------------------------------------------------------------------------- looks, one by one


class Looks:
    """
    A reader whose readings were made before.
    """

    def __init__(self, *readings: list[Link]) -> None:
        self._readings, self.ports = iter(readings), None

    def read(self) -> LinksReading:
        return LinksReading(tuple(next(self._readings)), {})


def looked(monkeypatch: pytest.MonkeyPatch, *readings: list[Link]) -> list[Links]:
    """
    What looks at these readings give, one a second.
    """
    clock = iter(range(100, 200))
    monkeypatch.setattr(runs.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(runs, "LinkReader", lambda *_: Looks(*readings))
    monkeypatch.setattr(runs.Looking, "_tcp", lambda *_: {})
    monkeypatch.setattr(runs.Looking, "_missed", lambda *_: {3: Ticks(2, 4)})
    monkeypatch.setattr(runs.Looking, "_processes", lambda *_: {})
    identity = SimpleNamespace(check=lambda: None)
    target = SimpleNamespace(pid=1, identity=identity, as_json=dict, memory=None)
    pids = SimpleNamespace(text=lambda term: f"<0.{term}.0>")
    looking = runs.Looking(SimpleNamespace(target=target, atoms=None, table=None, pids=pids))
    return [looking.look() for _ in readings]


def test_rates_are_of_one_connection(monkeypatch: pytest.MonkeyPatch):
    """
    A peer that was restarted under the same name has no rate over both connections.
    """
    first, second, third = looked(
        monkeypatch,
        [linked(1, 100, 1000)],
        [linked(1, 123, 1400)],
        [linked(1, 5000, 9000, connection=8)],
    )
    assert (first.rows[0].octet_rate, first.interval) == (None, None)
    assert (first.rows[0].ticks_missed, first.rows[0].ticks_limit) == (2, 4)
    assert second.rows[0].octet_rate == Pair(23.0, 400.0)
    assert third.rows[0].octet_rate is None
    assert third.rows[0].octets == Pair(5000, 9000)


def test_a_count_that_goes_back_has_no_rate(monkeypatch: pytest.MonkeyPatch):
    """
    Counters of one socket only grow: a torn reading yields null.
    """
    _, after = looked(monkeypatch, [linked(1, 100, 1000)], [linked(1, 99, 2000)])
    assert after.rows[0].octet_rate is None


def test_times_count_from_the_first_look_and_end_between_two(monkeypatch: pytest.MonkeyPatch):
    """
    A link that was not full in one look, and a process that did not wait, begin anew.
    """
    full = {"busy": True, "suspended": (97,)}
    states = [full, full, {}, full, full]
    found = looked(monkeypatch, *[[linked(1, **state)] for state in states])
    assert [one.rows[0].full_seconds for one in found] == [0.0, 1.0, None, 0.0, 1.0]
    waits = [[one.seconds for one in look.rows[0].suspended] for look in found]
    assert waits == [[0.0], [1.0], [], [0.0], [1.0]]


def test_silence_counts_from_the_last_packet(monkeypatch: pytest.MonkeyPatch):
    """
    Where no socket shows it, as with TLS, it is the time since packets came, seen by looks.
    """
    packets = [5, 5, 5, 6, 6]
    found = looked(monkeypatch, *[[replace(LINK, packets_in=count)] for count in packets])
    assert [one.rows[0].silent_seconds for one in found] == [None, 1.0, 2.0, 0.0, 1.0]


def test_the_worst_link_comes_first(monkeypatch: pytest.MonkeyPatch):
    """
    Full ones, then the longest queue, then by name.
    """
    links = [linked(4), linked(3), linked(2, queued=9), linked(1, busy=True)]
    (found,) = looked(monkeypatch, links)
    assert [row.peer for row in found.rows] == ["n1@host", "n2@host", "n3@host", "n4@host"]


# ------------------------------------------------------------------------------ names of metrics


def test_a_few_peers_have_a_name_and_nothing_is_lost():
    """
    Of 500 peers the full one and those with most traffic are named; bytes add up over all.
    """
    peers = Peers()
    links = [linked(n, n, 2 * n, busy=n == 3, suspended=(n,) * (n == 3)) for n in range(500)]
    found = {one.peer: one for one in peers.update(links, 10.0)}
    assert found.keys() == {"n3@host", "n499@host", "n498@host", "n497@host", "n496@host", OTHER}
    assert len(found) == MOST + 1
    assert (found["n3@host"].full, found["n3@host"].suspended) == (1, 1)
    whole = sum(range(500))
    assert (sum(one.octets[0] for one in found.values()), found["n3@host"].octets) == (
        whole,
        (3, 6),
    )
    assert sum(one.octets[1] for one in found.values()) == 2 * whole


def test_totals_of_a_name_only_grow_until_it_is_lost():
    """
    Names stay where they are, and what others send goes to the rest.
    """
    peers = Peers()
    peers.update([linked(n, 100 - n, 0) for n in range(8)], 0.0)
    after = {
        one.peer: one for one in peers.update([linked(n, 1000 * n + 100, 0) for n in range(8)], 1.0)
    }
    assert after.keys() == {*(f"n{n}@host" for n in range(5)), OTHER}
    assert after["n0@host"].octets[0] == 100
    assert after["n4@host"].octets[0] == 4100
    assert after[OTHER].octets[0] == 5100 + 6100 + 7100


def test_a_restarted_peer_adds_to_its_name():
    """
    Another connection of the same name counts from 0, and its bytes are added.
    """
    peers = Peers()
    peers.update([linked(1, 100, 0)], 0.0)
    (after,) = peers.update([linked(1, 23, 0, connection=8)], 1.0)
    assert after.octets[0] == 123


def test_names_that_look_alike_are_one_series_each():
    """
    Two links of one name are summed up, and characters that a terminal obeys are in none.
    """
    links = [linked(1, queued=3), replace(linked(2, queued=4), peer="n1@host")]
    (one,) = Peers().update(links, 0.0)
    assert (one.peer, one.queued) == ("n1@host", 7)
    odd = Peers().update(
        [replace(LINK, peer="a\x1b[2J@b"), replace(LINK, entry=2, peer="a?[2J@b")], 0.0
    )
    assert len({one.peer for one in odd}) == 2
    assert all("\x1b" not in one.peer for one in odd)


def test_the_longest_wait_is_of_one_process():
    """
    Processes that follow each other wait 0 s each; one that stays waits on.
    """
    peers = Peers()
    waits = [((1, 9),), ((2, 9),), ((3, 9),)]
    longest = [
        peers.update([linked(1, busy=True, suspended=one)], float(at))[0].longest
        for at, (one,) in enumerate(waits)
    ]
    assert longest == [0.0, 1.0, 2.0]
    assert peers.update([linked(1, busy=True, suspended=(4,))], 9.0)[0].longest == 0.0


# ---------------------------------------------------------------------------------------- output


TARGET = {
    "pid": 1, "exe": "/beam.smp", "node": "a@one", "otp_release": "27", "erts_version": "15",
    "flavor": "jit", "schedulers": 2,
}  # fmt: skip
ROW = Row(
    "b@two\x1b]0;x\x07", "pending", None, None, None, None, None, Pair(1, 2), None, None, 1_000_000,
    None, None, True, 12.3, None, 2, 4, 5, (Sender("<0.9.0>", "Elixir.Shop.Cart", 2.0),), None,
)  # fmt: skip


def test_a_table_obeys_no_peer_and_says_what_it_leaves_out():
    """
    Names of peers are data; of five processes one is named, and of two links one is shown.
    """
    text = "\n".join(lines(Links(TARGET, 1.0, [ROW, ROW], {"tcp": "no\x07"}, 0.01), 1))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "<0.9.0> Shop.Cart waits for it, for 2.0 s or longer" in text
    assert "and 4 more" in text
    assert "and 1 link more" in text
    assert "not read: tcp: no" in text


def test_names_of_peers_make_no_labels_without_end():
    """
    Of 23 new names in each of 23 readings twenty become labels in an hour; the rest is other.
    """
    peers, names = Peers(), set()
    for at in range(23):
        links = [linked(23 * at + n, 100, busy=True) for n in range(23)]
        names |= {one.peer for one in peers.update(links, float(at))}
    assert OTHER in names
    assert len(names - {OTHER}) == 20
    found = peers.update([linked(9999, 100, busy=True)], 4000.0)
    assert {one.peer for one in found} - {OTHER} != set()


def test_a_link_that_could_not_be_read_once_is_not_counted_twice():
    """
    Between 1,000 bytes and 1,023 lies a reading without them: 1,023 in all.
    """
    peers = Peers()
    peers.update([linked(1, 1000)], 0.0)
    peers.update([replace(linked(1, 1000), port=None)], 1.0)
    (found,) = peers.update([linked(1, 1023)], 2.0)
    assert found.octets is not None
    assert found.octets[0] == 1023


def test_a_vm_without_peers_says_so():
    """
    It is not an empty table.
    """
    assert "no connection to another node" in lines(Links(TARGET, 1.0, []), 5)[1]


def test_the_document_fits_its_schema_where_nothing_is_known():
    """
    Every figure that may be unknown is null.
    """
    document = documents.validated(Links(TARGET, None, [ROW]).as_json(), "links")
    assert document["links"][0]["bytes"] is None


# ------------------------------------------------------------------------------- the cost of looks


def test_of_all_sockets_of_a_host_only_those_that_are_meant_are_unpacked(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Of 500 sockets in the answer of the kernel, one is parsed: that which the process has.
    """
    unpacked = []
    with socket.socket() as one:
        inode = os.fstat(one.fileno()).st_ino
        bodies = [answer(number) for number in range(1, 500)] + [answer(inode)]
        looks = sockets.Sockets(os.getpid(), lambda: None)
        monkeypatch.setattr(looks, "_opened", contextlib.nullcontext)
        monkeypatch.setattr(looks, "close", lambda: None)
        monkeypatch.setattr(
            looks, "_ask", lambda _f, _k, flags=0: iter(bodies if flags else bodies[-1:])
        )
        monkeypatch.setattr(sockets, "parsed", lambda body: unpacked.append(body) or parsed(body))
        assert inode == looks.of({1: one.fileno()})[1].inode
    assert 1 == len(unpacked)


parsed = sockets.parsed


def test_a_socket_that_the_kernel_does_not_list_is_seldom_searched(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    A descriptor that is no TCP connection causes 9 lists of all sockets in 200 looks, not 200.
    """
    lists = []
    with socket.socket(socket.AF_UNIX) as one:
        looks = sockets.Sockets(os.getpid(), lambda: None)
        monkeypatch.setattr(looks, "_opened", contextlib.nullcontext)
        monkeypatch.setattr(looks, "_ask", lambda family, *_: iter(lists.append(family) or ()))
        for _ in range(200):
            assert looks.of({1: one.fileno()}) == {}
    # Looks 1, 2, 4, 8, 16, 32, 64, 128, 192: for IPv4 and for IPv6.
    assert 2 * 9 == len(lists)


class Counted(dict):
    """
    A dict that counts what is taken out of it by loops.
    """

    taken = 0

    def items(self):
        for item in super().items():
            Counted.taken += 1
            yield item


def test_carriers_of_links_are_searched_once_each(monkeypatch: pytest.MonkeyPatch):
    """
    For 300 links by TLS among 2,000 ports each owner is looked at once, not once for each link.
    """
    finder = CarrierPorts.__new__(CarrierPorts)
    finder._terms = {}
    owners = Counted({1000 + n: n for n in range(2000)})
    monkeypatch.setattr(finder, "_owned", lambda: {owner: [owner + 7] for owner in owners})
    replies = iter([{10_000 + n: n for n in range(300)}, owners])
    monkeypatch.setattr(finder, "_parents", lambda _pids: next(replies))
    finder._search({10_000 + n for n in range(300)})
    assert {10_000 + n: 1007 + n for n in range(300)} == finder._terms
    assert 2000 >= Counted.taken
