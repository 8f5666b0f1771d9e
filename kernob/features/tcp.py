# SPDX-License-Identifier: Apache-2.0
"""What becomes of connections: each tick's facts into their series, and the sweep that corrects them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.feature import Feature, Tick
from kernob.kernel.proc_sockets import ProcSockets
from kernob.kernel.procfs import ProcFs
from kernob.model import ProcessInfo, ProcessKey
from kernob.probes import tcp
from kernob.probes.traffic import Loss
from kernob.socket_sweep import SocketSweep
from kernob.state.connections import ConnectionState, TcpCaps
from kernob.state.known import Known
from kernob.state.series import SeriesStore


class Tcp(Feature):
    """What happens to connections: facts of a tick into their series, and the number of open ones."""

    def __init__(
        self,
        settings: Settings,
        store: SeriesStore,
        known: Known,
        proc: ProcFs,
        resolve: Callable[[ProcessKey], ProcessInfo | None],
    ) -> None:
        caps = TcpCaps(settings.max_process_series, settings.max_flow_series, settings.max_histogram_series)
        self.connections = ConnectionState(store, tcp.SPECS, caps, known)
        sockets = ProcSockets(settings.proc_root)
        self._sweep = (
            SocketSweep(proc, sockets, known, self.connections, resolve, store) if settings.tcp else None
        )
        self._usage: dict[str, int] = {}
        self.read: tcp.TcpRows | None = None
        """What the last tick read, for features that come after."""

    def tick(self, tick: Tick) -> None:
        """Reads what was counted since the tick before. Raises MapError."""
        if self._sweep is not None:
            self._read(tick, self._sweep)
        if tick.window_s is not None:
            self.connections.roll()

    def _read(self, tick: Tick, sweep: SocketSweep) -> None:
        self.read = facts = tcp.read(tick.session)
        rows = tick.rows
        self.connections.update(
            (facts.fates, facts.counts), (facts.durations, facts.histograms), rows.live, tick.since_unix_ns
        )
        sweep.tick(tick.session.map("socks"), rows.addresses, rows.sockets, tick.since_unix_ns, tick.now_s)
        self._usage = {"fates": len(facts.fates), "durations": len(facts.durations)}

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return self.connections.folded

    def usage(self) -> dict[str, int]:
        """Entries of its two maps."""
        return self._usage

    def losses(self, counts: NDArray[Any]) -> dict[str, int]:
        """Facts that no map had room for, out of the losses array."""
        if self._sweep is None:
            return {}
        return {"facts_full": int(counts[Loss.FATES_FULL] + counts[Loss.DURATIONS_FULL])}
