# SPDX-License-Identifier: Apache-2.0
"""Writes docs/metrics.md out of the specifications in the code. `make docs` calls it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kernob.export.telemetry import OWN_METRICS
from kernob.model import MetricKind, MetricSpec
from kernob.probes import lifecycle, syscalls, tcp, traffic
from kernob.state import baseline, map_series, score_series
from kernob.state.blocked import BLOCKED
from kernob.state.last_times import EVENT_LAST_TIME
from kernob.state.reconcile import REPAIRS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

HEAD = """\
# Metrics

Written by `make docs` from the specifications in the code; a test holds the two together.

All counters are cumulative from their series' start. A new series sends 0 stamped with its start before
its first value, so that the increase of a short-lived process is seen; a process's series is repeated until
its last value was acknowledged, and then ends. One of a service or a destination ends 15 minutes after the
last flow or process that counted into it was forgotten, and begins anew with 0 should it come back. Over a
network the 0 and the last value are sent once more ten seconds later, for backends that are killed with what
they acknowledged still in memory. What a cap does not admit is counted under `~other` of its service, and how
often that happened under `kernob.lost` with the cause `series_cap`.

Read counters by their increase: `increase(process_network_io_bytes_total[1m])` (as VictoriaMetrics and
Prometheus name it; dots become underscores, the unit and `total` are added). Unchanged series are sent again
once a minute (`KERNOB_RESEND_INTERVAL`): let `rate()` look over at least two of these.
"""

HISTOGRAMS = """\
What a kernel offers no hook for has no series (`kernob doctor` says which hooks there are): a metric that is
absent was not measured, one that is there was. A RST that answers a packet for a port where nobody listens
belongs to no service: `kernob.tcp.resets` has it without one.

### Histograms

All are exponential histograms of scale 2: four buckets an octave, so that a quantile is at most 9 % off at
the middle of its bucket. The kernel counts into these very buckets; nothing is resampled on the way.
VictoriaMetrics keeps a counter for each bucket that is not empty (label `vmrange`):

    histogram_quantile(0.95, sum by (vmrange) (increase(kernob_tcp_connect_duration_seconds_bucket[5m])))

A series begins with an empty point. A bucket that is new to the backend begins with 1, stamped a moment
after what was sent before: VictoriaMetrics would otherwise take its first count for one that it had missed,
and increase() would be 0.
"""

KINDS = {"counter": "counter", "updowncounter": "up-down counter", "gauge": "gauge", "histogram": "histogram"}


def table(title: str, specs: Iterable[MetricSpec]) -> str:
    """One section: a row for each metric."""
    lines = [f"## {title}", "", "| metric | kind, unit | attributes | says |", "|---|---|---|---|"]
    for spec in specs:
        attributes = ", ".join(f"`{name}`" for name in spec.attributes)
        lines.append(
            f"| `{spec.name}` | {KINDS[spec.kind.value]}, {spec.unit} | {attributes} | {spec.description} |"
        )
    return "\n".join(lines) + "\n"


SECTIONS: dict[str, tuple[MetricSpec, ...]] = {
    "Traffic": traffic.SPECS,
    "TCP": (*tcp.SPECS, REPAIRS, EVENT_LAST_TIME),
    "Scores": score_series.SPECS,
    "Processes": lifecycle.SPECS,
    "Service map": (*map_series.SPECS, *baseline.SPECS),
    "System calls": (*syscalls.SPECS, BLOCKED),
    "Kernob itself": OWN_METRICS,
}


def prometheus_name(spec: MetricSpec) -> str:
    """What VictoriaMetrics' -opentelemetry.usePrometheusNaming makes of it (/api/v1/series shows it)."""
    unit = {"By": "_bytes", "s": "_seconds"}.get(spec.unit, "")
    if spec.unit == "1" and spec.kind is MetricKind.GAUGE:
        unit = "_ratio"
    return spec.name.replace(".", "_") + unit + ("_total" if spec.kind is MetricKind.COUNTER else "")


def document() -> str:
    """The whole page."""
    tables = {title: table(title, specs) for title, specs in SECTIONS.items()}
    tables["Scores"] += "\n" + HISTOGRAMS
    return "\n".join((HEAD, *tables.values()))


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
