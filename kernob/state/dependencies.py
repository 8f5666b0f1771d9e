# SPDX-License-Identifier: Apache-2.0
"""What services depend on, and what happened with each dependency lately.

In: facts about connections by flow, once a tick. Out: rows of `ScoreWindows`, one for each (service, address,
port), and groups of them by address. Called by `features.scores`, in the tick thread. Only destinations that
we connect to by TCP are dependencies: whoever connects to us is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.model import Dependency, Fate, Outcome, Resent, Role, ScoreRules, Transport
from kernob.model.tcp import Drop
from kernob.state.destinations import Destination
from kernob.state.flows import Growth, Indices
from kernob.state.known import Known
from kernob.state.score_windows import Column, Rows, ScoreWindows, Timed

SYN_SENT = 2
"""include/net/tcp_states.h"""
ASKED = 1
"""enum phase of bpf/types.h."""
SILENT_AFTER_S = 10.0
SILENT_AFTER_QUANTILES = 10
"""TERMS: an exchange is silent after max(10 s, 10 x p95), where it has not ended by then."""
FAREWELL_BYTES, PUSH_NS, OLDER, HEARD = 32, 1_000_000_000, 4, 16
"""bpf/exchange.h (is_farewell, only_sends) and enum sock_flag of bpf/types.h."""
_ROOM = 1024
_NONE, _UNKNOWN, _BEYOND = -1, -2, -3
"""No row: is no dependency; was not looked at yet; found no room, and is looked at again."""


class Dependencies:
    """Rows by number; one is used again when nothing is left of what it stood for."""

    def __init__(
        self,
        rules: ScoreRules,
        cap: int,
        known: Known,
        by_design: Callable[[Destination], bool] = lambda _there: False,
    ) -> None:
        """`by_design` says of a destination whether it keeps silent by design, beside `rules.long_poll`."""
        self.rules = rules
        self._by_design = by_design
        self._long_poll = frozenset(host.lower() for host in rules.long_poll)
        self.windows = ScoreWindows(rules)
        self.folded = 0
        self._cap = cap
        self._known = known
        self._row_of = np.full(_ROOM, _UNKNOWN, np.int64)  # by flow
        self._look_again_s = 0.0  # not before then is there room where there was none
        self._rows: dict[Dependency, int] = {}
        self._names: list[Dependency | None] = []
        self.sources: list[str] = []
        """By row, how its name became known (kernob.name.source) when it was first met; "": not yet."""
        self._told: list[Dependency | None] | None = None
        self._labels: list[tuple[Dependency | None, str]] | None = None
        self._hosts: dict[str, int] = {}
        self._free: list[int] = []
        self.host_of: Rows = np.full(_ROOM, -1, np.int64)
        self.heard_s = np.zeros(_ROOM, np.float64)
        self.failed_unix_ns = np.zeros(_ROOM, np.int64)
        self.failing_now = np.zeros(_ROOM, np.int64)
        self.is_long_poll = np.zeros(_ROOM, np.bool_)
        """By row: silent by design, so that silence neither counts nor is looked for."""
        self.pending = np.zeros((_ROOM, 2), np.int64)
        """By row: attempts that sent their SYN three times and wait; exchanges that are silent and go on."""
        known.keep(self)

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[Dependency | None]:
        """What each row stands for; the same list until that changes, and not to be changed."""
        if self._told is None:
            self._told = self._names.copy()
        return self._told

    def labels(self) -> list[tuple[Dependency | None, str]]:
        """The same, each with its `sources`."""
        if self._labels is None:
            self._labels = list(zip(self._names, self.sources, strict=True))
        return self._labels

    def _renamed(self) -> None:
        self._told = self._labels = None

    def name(self, row: int) -> Dependency | None:
        """What a row stands for; None for an empty one."""
        return self._names[row]

    def row(self, name: Dependency) -> int | None:
        """The row of a dependency that is known."""
        return self._rows.get(name)

    def items(self) -> list[tuple[Dependency, int]]:
        """All dependencies with their rows."""
        return list(self._rows.items())

    def hosts(self) -> Mapping[str, int]:
        """Addresses with their groups, as `host_of` has them by row."""
        return self._hosts

    # as every PerFlow

    def make_room(self, flows: int) -> None:
        """Is ready for flows below `flows`."""
        extra = flows - len(self._row_of)
        if extra > 0:
            self._row_of = np.concatenate([self._row_of, np.full(extra, _UNKNOWN, np.int64)])

    def forget(self, flows: Indices) -> None:
        """These flows may come to mean others. What happened on them stays in the window."""
        self._row_of[flows] = _UNKNOWN

    def of_flows(self, flows: Indices) -> Rows:
        """The row of each flow; -1 where it has none."""
        beyond = flows[self._row_of[flows] == _BEYOND]
        if len(beyond) and self._has_room():
            room = len(self._free) + self._cap - len(self._names)
            self._row_of[np.unique(beyond)[:room]] = _UNKNOWN
        for flow in np.unique(flows[self._row_of[flows] == _UNKNOWN]).tolist():
            self._row_of[flow] = self._admit_flow(flow)
        found: Rows = np.maximum(self._row_of[flows], _NONE)
        return found

    def _admit_flow(self, flow: int) -> int:
        there = self._known.destination(flow)
        if there.role is not Role.CLIENT or there.transport is not Transport.TCP:
            return _NONE
        where = dict(there.where)
        name = Dependency(
            self._known.owner(flow).service, str(where["server.address"]), int(where["server.port"])
        )
        row = self.admit(name)
        if row >= 0:
            if not self.sources[row]:
                self.sources[row] = there.name_source.value
                self._labels = None
            self.is_long_poll[row] |= self._by_design(there)
        return row if row >= 0 else _BEYOND

    def admit(self, name: Dependency) -> int:
        """The row of a dependency, new or known; -1 beyond the cap."""
        row = self._rows.get(name)
        if row is not None:
            return row
        if not self._has_room():
            self.folded += 1
            return _NONE
        if self._free:
            row = self._free.pop()
            self._names[row] = name
        else:
            row = len(self._names)
            self._names.append(name)
            self.sources.append("")
            self._grow(row + 1)
        self._renamed()
        self._rows[name] = row
        self.host_of[row] = self._hosts.setdefault(name.address, len(self._hosts))
        self.failed_unix_ns[row] = 0
        self.sources[row] = ""
        self.is_long_poll[row] = name.address.lower() in self._long_poll
        self.heard_s[row] = self.windows.now_s
        return row

    def _grow(self, rows: int) -> None:
        self.windows.make_room(rows, self._cap)
        if rows > len(self.host_of):
            for name in (
                "host_of", "heard_s", "failed_unix_ns", "failing_now", "pending", "is_long_poll",
            ):  # fmt: skip
                array: NDArray[Any] = getattr(self, name)
                grown = np.zeros((len(array) * 2, *array.shape[1:]), array.dtype)
                grown[: len(array)] = array
                setattr(self, name, grown)

    def _has_room(self) -> bool:
        """Whether there is a row for another dependency, if need be that of one that is silent for long."""
        if self._free or len(self._names) < self._cap:
            return True
        if self.windows.now_s < self._look_again_s:
            return False
        self._make_way()
        if not self._free:
            self._look_again_s = self.windows.now_s + self.rules.bucket_s
        return bool(self._free)

    def _make_way(self) -> None:
        """Empties the tenth that was not heard of for longest, if for longer than a window."""
        count = len(self._names)
        limit = self.windows.now_s - self.rules.window_s - self.rules.bucket_s
        oldest = np.argsort(self.heard_s[:count])[: max(1, count // 10)]
        self.drop(oldest[self.heard_s[oldest] < limit])

    def drop(self, rows: Rows) -> None:
        """Empties rows, for other dependencies."""
        if not len(rows):
            return
        gone = set(rows.tolist())
        self._row_of[np.isin(self._row_of, rows)] = _UNKNOWN
        for row in gone:
            name = self._names[row]
            if name is not None:
                del self._rows[name]
            self._names[row] = None
            self._renamed()
        self._free.extend(gone)
        self.windows.forget(rows)
        if len(self._hosts) > 2 * self._cap:
            self._hosts = {}
            for name, row in self._rows.items():
                self.host_of[row] = self._hosts.setdefault(name.address, len(self._hosts))

    # what happened

    def count(self, keys: NDArray[Any], counts: NDArray[Any], at_s: float, at_unix_ns: int) -> None:
        """Takes facts (struct fate_key and counts) that happened about `at_s`."""
        keys, counts = self._ours(keys, counts)
        rows = self.of_flows(self._known.find(keys["flow"]))
        keys, counts, rows = keys[rows >= 0], counts[rows >= 0].astype(np.int64), rows[rows >= 0]
        kind, reason = keys["kind"], keys["reason"]
        self.heard_s[rows] = at_s
        silence = (kind == Fate.SILENCE) & ~self.is_long_poll[rows]
        ended = (kind == Fate.CONNECTION) & (reason != Outcome.CANCELLED)
        failed = ended & (reason != Outcome.OK)
        unanswered = (kind == Fate.DROP) & (reason == Drop.UNANSWERED)
        for which, column in (
            (ended, Column.ATTEMPTS),
            (failed, Column.FAILED),
            (kind == Fate.DROP, Column.DROPPED),
            (unanswered, Column.FINISHED),  # the others were counted when they were answered
            ((kind == Fate.RETRANSMIT) & (reason == Resent.DATA), Column.RETRANSMITS),
            (silence, Column.SILENT),
            (silence, Column.WAITED),
        ):
            self.windows.count(rows[which], column, counts[which], at_s)
        bad = np.flatnonzero(failed | (kind == Fate.DROP) | silence)
        for index in bad.tolist():
            row = int(rows[index])
            self.windows.blame(row, _reason(int(kind[index]), int(reason[index])), int(counts[index]), at_s)
            self.failed_unix_ns[row] = max(int(self.failed_unix_ns[row]), at_unix_ns)

    def time(self, keys: NDArray[Any], values: NDArray[Any], at_s: float) -> None:
        """Takes histograms (struct duration_key and duration_val) of what happened about `at_s`."""
        flow = keys["flow"]
        ours = np.flatnonzero(
            (flow["tgid"] != 0) & (flow["role"] == Role.CLIENT) & (keys["kind"] < len(Timed))
        )
        rows = self.of_flows(self._known.find(flow[ours]))
        ours, rows = ours[rows >= 0], rows[rows >= 0]
        self.windows.time(rows, keys["kind"][ours].astype(np.int64), values["buckets"][ours], at_s)

    def grow(self, growth: Growth, at_s: float) -> None:
        """Takes what grew on flows: answers and segments."""
        moved = np.flatnonzero((growth.answers > 0) | (growth.segments > 0))
        rows = self.of_flows(growth.flows[moved])
        moved, rows = moved[rows >= 0], rows[rows >= 0]
        self.heard_s[rows] = at_s
        self.windows.count(rows, Column.FINISHED, growth.answers[moved], at_s)
        waited = ~self.is_long_poll[rows]
        self.windows.count(rows[waited], Column.WAITED, growth.answers[moved][waited], at_s)
        self.windows.count(rows, Column.SEGMENTS, growth.segments[moved], at_s)

    def look(self, live: NDArray[Any], flows: Indices, now_s: float, slow_s: NDArray[np.float64]) -> None:
        """Looks at what goes on: attempts that wait, exchanges that are silent. None is kept.

        `live` are struct sock_val, `flows` theirs. `slow_s`: p95 of responses by row, NaN where unknown.
        """
        self.failing_now[:] = 0
        self.pending[:] = 0
        trying = (live["state"] == SYN_SENT) & (live["syn_retransmits"] > 0)
        asking = (live["phase"] == ASKED) & (live["silent_waits"] > 0)
        chosen = np.flatnonzero(trying | asking)
        if not len(chosen):
            return
        rows = self.of_flows(flows[chosen])
        chosen, rows = chosen[rows >= 0], rows[rows >= 0]
        socks, trying = live[chosen], trying[chosen]
        np.add.at(self.failing_now, rows[trying], 1)
        np.add.at(self.pending[:, 0], rows[trying & (socks["syn_retransmits"] >= 2)], 1)
        silent = ~trying & ~self.is_long_poll[rows] & _silent(socks, now_s, slow_s[rows])
        np.add.at(self.pending[:, 1], rows[silent], 1)
        self.heard_s[rows] = now_s

    @staticmethod
    def _ours(keys: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        ours = (keys["flow"]["tgid"] != 0) & (keys["flow"]["role"] == Role.CLIENT)
        return keys[ours], counts[ours]


def _silent(socks: NDArray[Any], now_s: float, slow_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of these exchanges count as silent although they go on."""
    limit_s = np.fmax(SILENT_AFTER_S, SILENT_AFTER_QUANTILES * slow_s)
    waited_s = now_s - socks["sent_ns"] / 1e9
    answered = (socks["answers"] > 0) | ((socks["flags"] & OLDER) != 0)
    farewell = (socks["asked"] <= FAREWELL_BYTES) & answered
    spread = socks["sent_ns"].astype(np.int64) - socks["asked_ns"].astype(np.int64)
    push = ((socks["flags"] & HEARD) == 0) & (spread > PUSH_NS)
    found: NDArray[np.bool_] = (waited_s > limit_s) & ~farewell & ~push
    return found


def _reason(kind: int, reason: int) -> str:
    if kind == Fate.SILENCE:
        return "silent"
    names = Outcome if kind == Fate.CONNECTION else Drop
    return names(reason).name.lower() if reason in names._value2member_map_ else "other"
