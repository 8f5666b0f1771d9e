# SPDX-License-Identifier: Apache-2.0
"""features.scores without a kernel: rows in, series out. Used by tests/unit/test_score*.py."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.feature import Tick
from kernob.features.scores import Scores
from kernob.features.tcp import Tcp
from kernob.kernel.session import Session
from kernob.model import Fate, Outcome, ProcessInfo, ProcessKey, Role
from kernob.probes import traffic
from kernob.probes.tcp import TcpRows
from kernob.probes.traffic import TrafficRows
from kernob.state.network import NetworkFile
from kernob.state.series import SeriesStore
from kernob.state.traffic import Caps, TrafficState
from tests.unit.records import DURATION_KEY, DURATION_VAL, SOCK_VAL, closed, durations, fates, flow_key
from tests.unit.series_points import points_of

AT_NS = 1_700_000_000_000_000_000
NOTHING = (np.zeros(0, DURATION_KEY), np.zeros(0, DURATION_VAL))
CLIENT = flow_key(11, "10.0.0.9", 443)
OTHER_PORT = flow_key(11, "10.0.0.9", 80)
ELSEWHERE = flow_key(21, "10.0.0.9", 443)
SERVER = flow_key(11, "192.0.2.7", 8080, role=Role.SERVER, local="10.0.0.1")
OK, REFUSED = Outcome.OK, Outcome.REFUSED
SYN_SENT, ESTABLISHED = 2, 1
ASKED, ANSWERED = 1, 2


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """Process N is program pN of service s(N // 10)."""
    return ProcessInfo(key, f"p{key.pid}", "comm", service=f"s{key.pid // 10}")


def socks(*rows: dict[str, Any]) -> NDArray[Any]:
    """A reading of the socks map; each row by the fields that are not 0."""
    made = np.zeros(len(rows), SOCK_VAL)
    for row, fields in zip(made, rows, strict=True):
        for name, value in fields.items():
            row[name] = np.frombuffer(value, made.dtype["key"])[0] if name == "key" else value
    return made


class FakeTcp:
    """What a tick read of connections."""

    read: TcpRows | None = None


class Fixture:
    """The feature over a traffic state, ticked as the pipeline does it: every 10 s from 1000 s on."""

    def __init__(self, network: NetworkFile | None = None, **settings: Any) -> None:
        self.store = SeriesStore()
        self.traffic = TrafficState(self.store, traffic.SPECS, Caps(100, 100, 100), resolve)
        self.tcp = FakeTcp()
        known, tcp = self.traffic.known, cast("Tcp", self.tcp)
        self.scores = Scores(Settings(**settings), self.store, known, tcp, network=network)
        self.now_s = 1000.0

    def tick(
        self,
        *facts: tuple[bytes, int, int, int, int, int],
        measured: tuple[NDArray[Any], NDArray[Any]] = NOTHING,
        live: NDArray[Any] | None = None,
        step_s: float = 10.0,
    ) -> None:
        """One tick with these facts, durations and live sockets."""
        rows = socks() if live is None else live
        self.now_s += step_s
        growth = self.traffic.update((*closed(), rows), AT_NS, self.now_s)
        self.tcp.read = TcpRows(*fates(*facts), *measured)
        read = TrafficRows(*closed(), rows, np.zeros(0), rows)
        self.scores.tick(Tick(cast("Session", None), read, growth, self.now_s, self.unix_ns(), AT_NS, None))

    def unix_ns(self) -> int:
        """The wall clock, which began with the first tick."""
        return AT_NS + int((self.now_s - 1000) * 1e9)

    def values(
        self, name: str, leave_out: tuple[str, ...] = ("kernob.name.source",)
    ) -> dict[tuple[Any, ...], float]:
        """Last value of each living series of a metric, by the values of its attributes but for some."""
        found: dict[tuple[Any, ...], float] = {}
        for point in points_of(self.store.batch(AT_NS + 10**13, everything=True), name):
            said = tuple(
                getattr(kv.value, str(kv.value.WhichOneof("value")))
                for kv in point.attributes
                if kv.key not in leave_out
            )
            if point.flags & 1:  # no recorded value
                found.pop(said, None)
            else:
                found[said] = point.as_int if point.HasField("as_int") else point.as_double
        return found

    def of(self, port: int = 443, service: str = "s1") -> dict[str, float]:
        """A dependency's score by dimension."""
        return self.scores.score(service, "10.0.0.9", port)


def connect(key: bytes, outcome: Outcome, count: int) -> tuple[bytes, int, int, int, int, int]:
    """Attempts that came to an end."""
    return key, Fate.CONNECTION, outcome, 0, 0, count


def silent(fixture: Fixture, since_s: float, **other: Any) -> dict[str, Any]:
    """A socket that asked so long ago, on which a wait ran out."""
    asked_ns = int((fixture.now_s + 1 - since_s) * 1e9)
    return {
        "key": CLIENT, "state": ESTABLISHED, "phase": ASKED, "silent_waits": 1, "asked": 100,
        "asked_ns": asked_ns, "sent_ns": asked_ns, **other,
    }  # fmt: skip


def responses(count: int, seconds: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Durations of one length."""
    return durations((CLIENT, 1, [int(seconds * 1e9)] * count), (SERVER, 1, [10**9] * 50))
