# SPDX-License-Identifier: Apache-2.0
"""Kernob's own health as metrics, by the OpenTelemetry SDK.

Enters: the latest snapshot after each tick, and from the export worker how exporting goes. Leaves: one
serialized ExportMetricsServiceRequest a tick. Called by `outlet`. These are a few dozen series; the bulk
ones are kept in `state.series`. `OWN_METRICS` is the one list of what is exported here.
"""

from __future__ import annotations

import os
import resource as posix_resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from kernob.export.encode import SCOPE_NAME
from kernob.model import Attributes, HookReport, MetricKind, MetricSpec, ProbeState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions

PROBE_ATTACHED = MetricSpec(
    "kernob.probe.attached",
    "1",
    MetricKind.GAUGE,
    "1 for each hook that is attached, 0 for one that is not, with the strategy that holds or the reason",
    ("kernob.probe", "kernob.hook", "kernob.strategy", "error.type"),
)
PROBE_RUN_TIME = MetricSpec(
    "kernob.probe.run_time",
    "s",
    MetricKind.COUNTER,
    "Time a probe's programs ran in the kernel; only with KERNOB_BPF_STATS",
    ("kernob.probe",),
    integer=False,
)
PROBE_RUNS = MetricSpec(
    "kernob.probe.runs",
    "{run}",
    MetricKind.COUNTER,
    "Runs of a probe's programs; only with KERNOB_BPF_STATS",
    ("kernob.probe",),
)
MAP_ENTRIES = MetricSpec(
    "kernob.bpf.map.entries", "{entry}", MetricKind.GAUGE, "Entries in a BPF map", ("kernob.map",)
)
MAP_CAPACITY = MetricSpec(
    "kernob.bpf.map.capacity", "{entry}", MetricKind.GAUGE, "Room in a BPF map", ("kernob.map",)
)
LOST = MetricSpec(
    "kernob.lost",
    "{event}",
    MetricKind.COUNTER,
    "What Kernob itself could not count or keep apart, by cause",
    ("kernob.cause",),
)
EVENTS_SUPPRESSED = MetricSpec(
    "kernob.events.suppressed",
    "{event}",
    MetricKind.COUNTER,
    "Events beyond KERNOB_MAX_EVENTS_PER_SECOND, told by a summary instead of one by one",
)
COVERAGE = MetricSpec(
    "kernob.coverage",
    "1",
    MetricKind.GAUGE,
    "Bytes attributed to processes over the bytes of the interface; absent while there is little traffic",
    ("network.io.direction", "interface"),
    integer=False,
)
EXPORT_DURATION = MetricSpec(
    "kernob.export.duration",
    "s",
    MetricKind.HISTOGRAM,
    "Time from sending an OTLP request to its answer or failure; kernob.signal: logs where it had events",
    ("error.type", "kernob.signal"),
    integer=False,
)
EXPORT_FAILURES = MetricSpec(
    "kernob.export.failures",
    "{request}",
    MetricKind.COUNTER,
    "OTLP requests that failed, by reason; a repeated request counts again",
    ("error.type", "kernob.signal"),
)
EXPORT_REPLACED = MetricSpec(
    "kernob.export.replaced",
    "{batch}",
    MetricKind.COUNTER,
    "Batches that were not delivered, because a newer one with all they contained took their place",
)
EXPORT_REJECTED = MetricSpec(
    "kernob.export.rejected",
    "{point}",
    MetricKind.COUNTER,
    "Points the endpoint refused for good (partial success, bad data)",
)
CPU_TIME = MetricSpec(
    "process.cpu.time", "s", MetricKind.COUNTER, "CPU time of the agent", ("cpu.mode",), integer=False
)
MEMORY_USAGE = MetricSpec("process.memory.usage", "By", MetricKind.UPDOWN, "Resident memory of the agent")

OWN_METRICS: Final = (
    PROBE_ATTACHED,
    PROBE_RUN_TIME,
    PROBE_RUNS,
    MAP_ENTRIES,
    MAP_CAPACITY,
    LOST,
    EVENTS_SUPPRESSED,
    COVERAGE,
    EXPORT_DURATION,
    EXPORT_FAILURES,
    EXPORT_REPLACED,
    EXPORT_REJECTED,
    CPU_TIME,
    MEMORY_USAGE,
)

_DURATION_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_MAX_REASON_CHARS: Final = 80


class OwnTelemetry:
    """Holds the SDK's instruments; is the export worker's observer. `collect` is for the tick thread.

    `process_dir` is the agent's own directory in /proc.
    """

    def __init__(
        self, resource: Attributes, version: str = "", process_dir: Path = Path("/proc/self")
    ) -> None:
        self._statm = process_dir / "statm"
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._snapshot: Snapshot | None = None
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider(
            metric_readers=[self._reader],
            resource=Resource(dict(resource)),
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        meter = self._meter = self._provider.get_meter(SCOPE_NAME, version)
        self._observe(PROBE_ATTACHED, _attached)
        self._observe(PROBE_RUN_TIME, _run_times)
        self._observe(PROBE_RUNS, _runs)
        self._observe(MAP_ENTRIES, _map_entries)
        self._observe(MAP_CAPACITY, _map_capacities)
        self._observe(LOST, _losses)
        self._observe(EVENTS_SUPPRESSED, lambda snapshot: [Observation(snapshot.suppressed_events)])
        self._observe(COVERAGE, _coverage)
        self._observe(CPU_TIME, _cpu_times)
        self._observe(MEMORY_USAGE, self._memory)
        self._duration = meter.create_histogram(
            EXPORT_DURATION.name,
            EXPORT_DURATION.unit,
            EXPORT_DURATION.description,
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDS_S,
        )
        self._failures, self._replaced, self._rejected = (
            meter.create_counter(spec.name, spec.unit, spec.description)
            for spec in (EXPORT_FAILURES, EXPORT_REPLACED, EXPORT_REJECTED)
        )
        self._replaced.add(0)
        self._rejected.add(0)

    def observe(self, snapshot: Snapshot) -> None:
        """Take what the next `collect` reports."""
        self._snapshot = snapshot

    def collect(self) -> bytes | None:
        """Return one serialized ExportMetricsServiceRequest; None when the SDK has nothing (disabled)."""
        data = self._reader.get_metrics_data()
        return encode_metrics(data).SerializeToString() if data else None

    def exported(self, duration_s: float, error_type: str) -> None:
        """Count one OTLP request and how long it took (seconds); `error_type` is "" for success."""
        self._count_request(duration_s, {"error.type": error_type} if error_type else {})

    def exported_logs(self, duration_s: float, error_type: str) -> None:
        """The same for a request of log records."""
        error = {"error.type": error_type} if error_type else {}
        self._count_request(duration_s, {**error, "kernob.signal": "logs"})

    def _count_request(self, duration_s: float, attributes: dict[str, str]) -> None:
        self._duration.record(duration_s, attributes)
        if "error.type" in attributes:
            self._failures.add(1, attributes)

    def replaced(self) -> None:
        """Count a batch that gave way to a newer one."""
        self._replaced.add(1)

    def rejected(self, points: int) -> None:
        """Count points the endpoint refused for good."""
        self._rejected.add(points)

    def _observe(self, spec: MetricSpec, read: Callable[[Snapshot], Iterable[Observation]]) -> None:
        """Make an instrument whose values are read from the latest snapshot."""
        create = {
            MetricKind.COUNTER: self._meter.create_observable_counter,
            MetricKind.UPDOWN: self._meter.create_observable_up_down_counter,
            MetricKind.GAUGE: self._meter.create_observable_gauge,
        }[spec.kind]

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            return read(self._snapshot) if self._snapshot else ()

        create(spec.name, [callback], spec.unit, spec.description)

    def _memory(self, _snapshot: Snapshot) -> Iterable[Observation]:
        """Resident memory: the second number of proc_pid_statm(5), in pages."""
        pages = int(self._statm.read_text(encoding="ascii").split()[1])
        yield Observation(pages * self._page_bytes)


def _attached(snapshot: Snapshot) -> Iterable[Observation]:
    for hook in snapshot.hooks:
        attributes = {"kernob.probe": hook.probe, "kernob.hook": hook.hook, "kernob.strategy": hook.strategy}
        if hook.state is ProbeState.FAILED:
            attributes["error.type"] = _reason(hook)
        yield Observation(int(hook.state is ProbeState.ATTACHED), attributes)


def _reason(hook: HookReport) -> str:
    """Return why the last strategy failed, without the names in front: few values, as error.type wants it."""
    failed = [attempt.reason for attempt in hook.attempts if not attempt.attached and attempt.reason]
    return failed[-1].rpartition(": ")[2].splitlines()[-1][:_MAX_REASON_CHARS] if failed else "other"


def _run_times(snapshot: Snapshot) -> Iterable[Observation]:
    return [Observation(run.run_time_s, {"kernob.probe": run.probe}) for run in snapshot.runs]


def _runs(snapshot: Snapshot) -> Iterable[Observation]:
    return [Observation(run.runs, {"kernob.probe": run.probe}) for run in snapshot.runs]


def _map_entries(snapshot: Snapshot) -> Iterable[Observation]:
    return [Observation(usage.entries, {"kernob.map": usage.name}) for usage in snapshot.maps]


def _map_capacities(snapshot: Snapshot) -> Iterable[Observation]:
    return [Observation(usage.capacity, {"kernob.map": usage.name}) for usage in snapshot.maps]


def _losses(snapshot: Snapshot) -> Iterable[Observation]:
    return [Observation(count, {"kernob.cause": cause}) for cause, count in snapshot.losses.items()]


def _coverage(snapshot: Snapshot) -> Iterable[Observation]:
    for each in snapshot.coverage:
        if each.ratio is not None:
            yield Observation(
                each.ratio, {"network.io.direction": each.direction, "interface": each.interface}
            )


def _cpu_times(_snapshot: Snapshot) -> Iterable[Observation]:
    used = posix_resource.getrusage(posix_resource.RUSAGE_SELF)
    return [
        Observation(used.ru_utime, {"cpu.mode": "user"}),
        Observation(used.ru_stime, {"cpu.mode": "system"}),
    ]
