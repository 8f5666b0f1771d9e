# SPDX-License-Identifier: Apache-2.0
"""An agent that publishes what a test hands it, and flows to hand it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from kernob.model import FlowRow, PeerClass, Pulse, Role, Snapshot, Transport

FAILSAFE_S = 10.0
"""Only reached by a test that fails."""


def flow(pid: int = 1, name: str = "curl", rate: float = 0.0, **changes: Any) -> FlowRow:
    base: dict[str, Any] = {
        "service": f"{name}.service",
        "alive": True,
        "role": Role.CLIENT,
        "transport": Transport.TCP,
        "address": "192.0.2.1",
        "port": 443,
        "peer": "192.0.2.1",
        "peer_class": PeerClass.EXTERNAL,
        "tx_bytes": 1000,
        "rx_bytes": 100,
        "tx_rate": rate,
        "rx_rate": 0.0,
    }
    return FlowRow(pid=pid, executable=name, **(base | changes))


def snapshot(*flows: FlowRow, second: int = 1) -> Snapshot:
    return Snapshot(second * 10**9, 0, 1.0, "web-01", tuple(flows))


BUSY = (flow(11, "rsync", 900.0, tx_bytes=5), flow(12, "nginx", 90.0), flow(13, "curl", 10.0, tx_bytes=9000))
HOSTILE = (
    flow(21, "\x1b[2J\x1b]0;owned\x07", 7.0, service="[red]bold[/red]"),
    flow(22, "x" * 255, 6.0, service="y" * 255),
    flow(23, "数据库服务器進程名前" * 5, 5.0, service="サービス" * 20),
    flow(24, "e\u0301\u0301\u0301\u0301zalgo", 4.0, service="\u202egnp"),
    flow(25, "new\nline", 3.0, service="[@click=app.bell]x[/]"),
)


class FakeAgent:
    """Publishes what the test hands it; every subscriber sees every snapshot published after it came."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.intervals: list[float] = []
        self.unsubscribed = 0
        self.settled = 0  # published snapshots after which a subscriber came back
        self.age_s = 1.0  # since its last tick
        self.standing: Snapshot | None = None  # what a subscriber gets without waiting
        self._published: list[Snapshot] = []
        self._ended = False
        self._changed = threading.Condition()

    def subscribe(self, interval_s: float) -> Generator[Snapshot, None, None]:
        with self._changed:
            self.intervals.append(interval_s)
            position = len(self._published)
            self._changed.notify_all()
        return self._follow(position)

    def pulse(self) -> Pulse:
        return Pulse(self.age_s, 30.0)

    def report(self, name: str, words: Mapping[str, str]) -> Mapping[str, Any]:
        if name != "echo":
            raise ValueError(f"no report {name!r}")
        return {"words": dict(words)}

    def _follow(self, position: int) -> Generator[Snapshot, None, None]:
        try:
            if self.standing is not None:
                yield self.standing
            while True:
                with self._changed:
                    while not self._ended and len(self._published) <= position:
                        self._changed.wait()
                    if len(self._published) <= position:
                        return
                    found = self._published[position]
                position += 1
                yield found
                with self._changed:
                    self.settled += 1
        finally:
            with self._changed:
                self.unsubscribed += 1
                self._changed.notify_all()

    def publish(self, one: Snapshot, subscribers: int = 0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.intervals) >= subscribers, FAILSAFE_S)
            self._published.append(one)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FAILSAFE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
