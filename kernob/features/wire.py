# SPDX-License-Identifier: Apache-2.0
"""How much of the interfaces' traffic the flows explain (TERMS: Coverage)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kernob.derive.coverage import Payload, Reach, coverage, wire_bytes
from kernob.features.feature import Feature, Tick
from kernob.kernel.procfs import InterfaceCounters, ProcFs
from kernob.model import Coverage
from kernob.state.destinations import Destination
from kernob.state.flows import Growth

if TYPE_CHECKING:
    from kernob.kernel.session import Session

_LOOK_S = 60.0


class Wire(Feature):
    """Payload by window against the interfaces' own counters."""

    def __init__(
        self, proc: ProcFs, wanted: tuple[str, ...], destination: Callable[[int], Destination]
    ) -> None:
        """`destination` knows the other end of a flow."""
        self._proc = proc
        self._destination = destination
        self._wanted = wanted
        self._sums: dict[tuple[int, str], int] = {}
        self._before: dict[str, InterfaceCounters] = {}
        self._reach = Reach((), ())
        self._counted: tuple[str, ...] = ()
        self._looked_s = 0.0
        self.coverage: tuple[Coverage, ...] = ()

    def tick(self, tick: Tick) -> None:
        """Adds what moved since the tick before, and compares where a window ends."""
        self._add(tick.growth)
        if tick.window_s is not None:
            self._roll(tick.now_s)

    def parts(self) -> dict[str, Any]:
        """The last window's coverage."""
        return {"coverage": self.coverage}

    def open(self, session: Session) -> None:
        """Begins the first window."""
        now_s = time.monotonic()
        self._before = self._proc.interfaces()
        self._look_around(now_s)

    def _look_around(self, now_s: float) -> None:
        """Which interfaces count, and what lies behind them."""
        self._looked_s = now_s
        self._counted = self._proc.counted_interfaces(self._before, self._wanted)
        self._reach = Reach(self._proc.routes(), self._counted)

    def _add(self, growth: Growth) -> None:
        """Adds what flows moved over counted interfaces, from whatever network namespace.

        A container's traffic crosses the host's interface too; one to a neighbour or to the host does
        not, which its peer's address tells.
        """
        moved = zip(growth.flows.tolist(), growth.tx_bytes.tolist(), growth.rx_bytes.tolist(), strict=True)
        for flow, tx, rx in moved:
            there = self._destination(flow)
            if not self._reach.crosses(there.peer):
                continue
            name = f"{there.transport.name.lower()}{4 if ':' not in there.peer else 6}_bytes"
            for direction, count in enumerate((tx, rx)):
                self._sums[direction, name] = self._sums.get((direction, name), 0) + count

    def _roll(self, now_s: float) -> None:
        """Ends a window and begins the next."""
        after = self._proc.interfaces()
        wire = wire_bytes(self._before, after, self._counted)
        sent = Payload(**{n: c for (d, n), c in self._sums.items() if d == 0})
        received = Payload(**{n: c for (d, n), c in self._sums.items() if d == 1})
        if self._counted:
            self.coverage = coverage(",".join(self._counted), wire, received, sent)
        self._sums = {}
        self._before = after
        if now_s - self._looked_s > _LOOK_S:
            self._look_around(now_s)
