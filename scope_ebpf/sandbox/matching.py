# SPDX-License-Identifier: Apache-2.0
"""
Finds the functions of a reference in a file without their names. Runs confined.

Exported names and texts that one function only names give the first pairs. From there the calls of
paired functions are aligned, in order, and callers are compared: what stands at the same place is a
candidate. A candidate becomes a pair if both are each other's best by a margin. At the end each
wanted pair is scored anew, against everything that is called or calls around it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from scope_ebpf.sandbox.marks import Body, Function

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from scope_ebpf.sandbox.learning import Row
    from scope_ebpf.sandbox.marks import Marks

#: Rounds of pairing, and the least score and margin of a pair; later rounds take less.
_ROUNDS, _EARLY = 10, 5
_SCORE, _LATE_SCORE, _MARGIN = 0.62, 0.52, 0.05
#: A text that pairs two functions by itself has at least so many votes of its kind.
_MOST_CALLERS = 40
#: Weights of the parts of a score.
_TEXTS, _NAMES, _CONSTANTS, _FIELDS, _SIZE, _CALLS = 3.0, 2.0, 2.0, 1.5, 1.5, 1.0
_CALLED, _CALLING = 4.0, 3.0
#: Candidates of a row that are scored in full while pairs are made, and the least they must have.
_TRIED, _ROUGH = 3, 0.3
#: Candidates that are scored in full for a wanted function at the end.
_FINAL = 8


class Found(NamedTuple):
    """A wanted function: start, size, score and distance to the next best, in thousandths."""

    start: int
    size: int
    score: int
    margin: int


@dataclass(slots=True)
class _Learned:
    """A row of the reference."""

    name: str
    instructions: int
    function: Function
    body: Body
    #: Calls by index; ELSEWHERE and names are not among them.
    called: list[int]


class Reference:
    """The rows of a reference, whose form has been checked."""

    def __init__(self, rows: list[Row], called: list[str], unique: list[int]) -> None:
        self.unique = frozenset(unique)
        self.rows = [_learned(row, called) for row in rows]
        self.names = {row.name: number for number, row in enumerate(self.rows) if row.name}
        #: By row the counts of its texts, and of other files' functions that it calls.
        self.counts = [_counts(row.function) for row in self.rows]
        self.callers: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            for callee in dict.fromkeys(row.called):
                self.callers[callee].append(number)


def _counts(function: Function) -> tuple[Counter[int], Counter[str]]:
    return Counter(function.texts), Counter(c for c in function.calls if isinstance(c, str))


def _learned(row: Row, called: list[str]) -> _Learned:
    name, _, instructions, texts, calls, constants, fields = row
    named = [called[-2 - call] if call <= -2 else call for call in calls]
    return _Learned(
        name,
        instructions,
        Function(texts, named),
        Body(instructions, _counter(constants), _counter(fields)),
        [call for call in calls if call >= 0],
    )


def _counter(pairs: list[list[int]]) -> Counter[int]:
    return Counter({pair[0]: pair[1] for pair in pairs})


class Matcher:
    """Pairs functions of *reference* with those of *marks*; *exports* are names in the file."""

    def __init__(self, marks: Marks, exports: Mapping[str, int], reference: Reference) -> None:
        self._marks, self._reference = marks, reference
        #: Index in the reference by start, and the reverse.
        self.index: dict[int, int] = {}
        self.pairs: dict[int, int] = {}
        #: Pairs whose calls have not been aligned since the last change around them.
        self._fresh: set[int] = set()
        self._counts: dict[int, tuple[Counter[int], Counter[str]]] = {}
        for name, start in exports.items():
            if name in reference.names:
                self._pair(reference.names[name], start)

    def run(self, wanted: Collection[str]) -> dict[str, Found]:
        """Find the functions *wanted*; those without a candidate are left out."""
        self._pair_by_texts()
        votes: Counter[tuple[int, int]] = Counter()
        for number in range(_ROUNDS):
            for index in self._fresh:
                self._vote(index, votes)
            self._fresh = set()
            self._settle(votes, _SCORE if number < _EARLY else _LATE_SCORE)
            if not self._fresh and number >= _EARLY:
                break
        found = {}
        for name in wanted:
            known = self._reference.names.get(name)
            if known is not None and (best := self._final(known)):
                found[name] = best
        return found

    def _pair(self, index: int, start: int) -> bool:
        if index in self.pairs or start in self.index or start not in self._marks.functions:
            return False
        self.pairs[index] = start
        self.index[start] = index
        # What is around it may be distinguished now.
        self._fresh.add(index)
        around = (*self._reference.rows[index].called, *self._reference.callers[index])
        self._fresh |= {near for near in around if near in self.pairs}
        return True

    def _pair_by_texts(self) -> None:
        """Pair functions by the texts that they alone name, in both files."""
        ours: dict[int, set[int]] = defaultdict(set)
        for start, function in self._marks.functions.items():
            for text in function.texts:
                if text in self._reference.unique:
                    ours[text].add(start)
        votes: Counter[tuple[int, int]] = Counter()
        for index, row in enumerate(self._reference.rows):
            for text in set(row.function.texts):
                if text in self._reference.unique and len(ours[text]) == 1:
                    votes[index, next(iter(ours[text]))] += 1
        for (index, start), _ in votes.most_common():
            self._pair(index, start)

    def _vote(self, index: int, votes: Counter[tuple[int, int]]) -> None:
        """Let a pair vote for pairs among its callees and its callers."""
        start, row = self.pairs[index], self._reference.rows[index]
        ours = self._marks.functions[start].calls
        first = [self._token(call) for call in row.function.calls]
        second = [self._own_token(call) for call in ours]
        blocks = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
        for kind, i1, i2, j1, j2 in blocks:
            if kind != "equal" and not (kind == "replace" and i2 - i1 == j2 - j1):
                continue
            for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                theirs, own = row.function.calls[i], ours[j]
                unknown = first[i] is None and second[j] is None
                if unknown and isinstance(theirs, int) and isinstance(own, int) and theirs >= 0:
                    votes[theirs, own] += 1
        theirs_free = [n for n in self._reference.callers[index] if n not in self.pairs]
        ours_free = [s for s in self._marks.callers.get(start, ()) if s not in self.index]
        if len(theirs_free) * len(ours_free) <= _MOST_CALLERS:
            for caller in theirs_free:
                for own_caller in ours_free:
                    votes[caller, own_caller] += 0  # a candidate, without a vote

    def _token(self, call: int | str) -> object:
        """What a call of the reference is compared by; None where its pair is not known."""
        return call if isinstance(call, str) or call in self.pairs else None

    def _own_token(self, call: int | str) -> object:
        return call if isinstance(call, str) else self.index.get(call)

    def _settle(self, votes: Counter[tuple[int, int]], least: float) -> None:
        """Pair the candidates that are each other's best."""
        scores: list[tuple[float, int, int]] = []
        for (index, start), count in list(votes.items()):
            if index in self.pairs or start in self.index or start not in self._marks.functions:
                del votes[index, start]
                continue
            rough = self.score(index, start, full=False) + min(count, 5) * 0.02
            scores.append((rough, index, start))
        scores = self._in_full(scores)
        theirs, ours = _Best(), _Best()
        for score, index, start in scores:
            theirs.add(index, score, start)
            ours.add(start, score, index)
        for score, index, start in scores:
            if score < least:
                break
            if theirs.is_best(index, start) and ours.is_best(start, index):
                self._pair(index, start)

    def _in_full(self, rough: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """Score the best candidates of each row by what a disassembly shows as well; in order."""
        rough.sort(reverse=True)
        tried: Counter[int] = Counter()
        scores = []
        for score, index, start in rough:
            if score >= _ROUGH and tried[index] < _TRIED:
                tried[index] += 1
                more = score - self.score(index, start, full=False)
                scores.append((self.score(index, start) + more, index, start))
        scores.sort(reverse=True)
        return scores

    def _final(self, index: int) -> Found | None:
        """The best start for a row of the reference, among all around it."""
        candidates = set(self._candidates(index))
        if index in self.pairs:
            candidates.add(self.pairs[index])
        # Those that are paired with another row belong to it.
        free = [s for s in candidates if self.index.get(s, index) == index]
        rough = sorted(free, key=lambda start: -self.score(index, start, full=False))[:_FINAL]
        if self.pairs.get(index) in free and self.pairs[index] not in rough:
            rough.append(self.pairs[index])
        scores = sorted(((self.score(index, start), start) for start in rough), reverse=True)
        if not scores or (index in self.pairs and scores[0][1] != self.pairs[index]):
            return None
        score, start = scores[0]
        margin = score - scores[1][0] if len(scores) > 1 else score
        return Found(
            start, self._marks.starts.sizes[start], round(score * 1000), round(margin * 1000)
        )

    def _candidates(self, index: int) -> Iterator[int]:
        """Functions that call or are called by what the row's neighbours are paired with."""
        for caller in self._reference.callers[index]:
            if caller in self.pairs:
                calls = self._marks.functions[self.pairs[caller]].calls
                yield from (c for c in calls if isinstance(c, int) and c in self._marks.functions)
        for callee in self._reference.rows[index].called:
            if callee in self.pairs:
                yield from self._marks.callers.get(self.pairs[callee], ())

    def score(self, index: int, start: int, *, full: bool = True) -> float:
        """How alike a row and a function are, 0 to 1; *full* needs a disassembly."""
        row, ours = self._reference.rows[index], self._marks.functions[start]
        total = weight = 0.0
        for part, likeness in self._parts(index, row, start, ours, full=full):
            if likeness is not None:
                total += part * likeness
                weight += part
        return total / weight if weight else 0.0

    def _parts(
        self, index: int, row: _Learned, start: int, ours: Function, *, full: bool
    ) -> Iterator[tuple[float, float | None]]:
        if start not in self._counts:
            self._counts[start] = _counts(ours)
        texts, names = self._reference.counts[index]
        yield _TEXTS, _alike(texts, self._counts[start][0])
        yield _NAMES, _alike(names, self._counts[start][1])
        if full:
            body = self._marks.body(start)
            yield _CONSTANTS, _alike(row.body.constants, body.constants)
            yield _FIELDS, _alike(row.body.fields, body.fields)
            yield _SIZE, _ratio(row.instructions, body.instructions)
        yield _CALLS, _ratio(len(row.function.calls), len(ours.calls))
        pairs, index_of = self.pairs, self.index
        theirs = Counter(pairs[c] for c in row.called if c in pairs)
        own = Counter(c for c in ours.calls if isinstance(c, int) and c in index_of)
        yield _CALLED, _alike(theirs, own)
        theirs = Counter(pairs[c] for c in self._reference.callers[index] if c in pairs)
        own = Counter(c for c in self._marks.callers.get(start, ()) if c in index_of)
        yield _CALLING, _alike(theirs, own)


class _Best:
    """For each key the best value, and whether it is better than the next by a margin."""

    def __init__(self) -> None:
        self._found: dict[int, list[tuple[float, int]]] = defaultdict(list)

    def add(self, key: int, score: float, value: int) -> None:
        """In falling order of *score*."""
        if len(self._found[key]) < 2:
            self._found[key].append((score, value))

    def is_best(self, key: int, value: int) -> bool:
        first, *others = self._found[key]
        return first[1] == value and all(first[0] - score >= _MARGIN for score, _ in others)


def _alike(first: Counter[Any], second: Counter[Any]) -> float | None:
    """The share of marks that both have; None where there are none."""
    every = sum((first | second).values())
    return sum((first & second).values()) / every if every else None


def _ratio(first: int, second: int) -> float | None:
    most = max(first, second)
    return min(first, second) / most if most else None
