# SPDX-License-Identifier: Apache-2.0
"""All ways out of the agent as one: the OTLP endpoint, the OTLP file, both, or none.

Enters: settings once; a batch and a snapshot each tick, events as they come. Leaves: what the exporters
send and write, and the batches that are safely away. Called by the agent; imports only what the settings
need.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from kernob.export.encode import Batch
from kernob.export.resource import build_resource, host_roots
from kernob.export.transport import OtlpOptions

if TYPE_CHECKING:
    from kernob.export.file import OtlpFileExporter
    from kernob.export.logs_worker import LogExporter
    from kernob.export.telemetry import OwnTelemetry
    from kernob.export.worker import Exporter
    from kernob.model import Event, Snapshot

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class OutletOptions(OtlpOptions, Protocol):
    """What is needed besides a transport's options; `config.OtlpSettings` is one."""

    @property
    def exporter(self) -> str:
        """Say "otlp", or "none" for no endpoint at all."""


class Outlet(Generic[AnyBatch]):
    """Raises ConfigError at once for an endpoint, a TLS file or a file that cannot work.

    `options` are those of metrics, `logs` those of events (None: they go nowhere but into the file).
    `resource_attributes` are the user's; `proc_root` is the host's /proc, `host_root` the host's root,
    where it is mounted.
    """

    def __init__(
        self,
        options: OutletOptions,
        resource_attributes: tuple[tuple[str, str], ...] = (),
        otlp_file: Path | None = None,
        version: str = "",
        proc_root: Path = Path("/proc"),
        host_root: Path | None = None,
        logs: OutletOptions | None = None,
    ) -> None:
        self._exporter: Exporter[AnyBatch] | None = None
        self._file: OtlpFileExporter | None = None
        self._own: OwnTelemetry | None = None
        self._logs: LogExporter | None = None
        self._unwritten = 0
        self._delivered: list[AnyBatch] = []
        networked = options.exporter != "none"
        if logs is not None and logs.exporter == "none":
            logs = None
        if not networked and otlp_file is None and logs is None:
            return
        from kernob.export.telemetry import OwnTelemetry

        roots = (host_root,) if host_root else host_roots(proc_root)
        resource = build_resource(resource_attributes, version, roots)
        self._own = OwnTelemetry(resource, version)
        if otlp_file is not None:
            from kernob.export.file import OtlpFileExporter

            self._file = OtlpFileExporter(otlp_file, resource, version)
        if networked:
            from kernob.export.worker import Exporter

            self._exporter = Exporter(options, resource, version, self._own)
        if logs is not None:
            from kernob.export.logs_worker import LogExporter

            self._logs = LogExporter(logs, resource, version, self._own)

    def submit(self, batch: AnyBatch, snapshot: Snapshot) -> None:
        """Hand over what a tick produced; an endpoint never holds this up, a file takes its time."""
        own: bytes | None = None
        if self._own is not None:
            self._own.observe(snapshot)
            own = self._own.collect()
        written = self._file is None or self._file.write(batch, own)
        if self._exporter is not None:
            self._exporter.submit(batch, own)
        elif written:
            self._delivered.append(batch)

    def submit_events(self, events: Sequence[Event]) -> None:
        """Hand over what happened; an endpoint never holds this up, a file takes its time."""
        if self._logs is not None:
            self._logs.submit(events)
        if self._file is not None and not self._file.write_events(events, time.time_ns()):
            self._unwritten += len(events)

    @property
    def lost_events(self) -> int:
        """Events that no endpoint took and that wait no longer, or that the file had no room for."""
        return self._unwritten + (self._logs.lost if self._logs is not None else 0)

    def acknowledged(self) -> list[AnyBatch]:
        """Return the batches that are safely away since the last call, oldest first.

        With an endpoint that is what it took, else what the file holds, else everything.
        """
        if self._exporter is not None:
            return self._exporter.acknowledged()
        delivered, self._delivered = self._delivered, []
        return delivered

    def close(self, timeout_s: float, most_s: float = 0.0) -> None:
        """Deliver what is left, within about `timeout_s` seconds; `most_s` while totals are being taken."""
        deadline_s = time.monotonic() + timeout_s
        if self._exporter is not None:
            self._exporter.close(timeout_s, most_s)
        if self._logs is not None:
            self._logs.close(max(0.2, deadline_s - time.monotonic()))
        if self._file is not None:
            self._file.close()
