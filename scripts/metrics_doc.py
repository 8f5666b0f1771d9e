# SPDX-License-Identifier: Apache-2.0
"""Writes docs/metrics.md out of the specifications in the code. `make docs` calls it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kernob.export.telemetry import OWN_METRICS
from kernob.model import MetricSpec
from kernob.probes.traffic import SPECS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

HEAD = """\
# Metrics

Written by `make docs` from the specifications in the code; a test holds the two together.

All counters are cumulative from their series' start. A new series sends 0 stamped with its start before
its first value, so that the increase of a short-lived process is seen; a process's series is repeated until
its last value was acknowledged, and then ends. Over a network the 0 and the last value are sent once more ten
seconds later, for backends that are killed with what they acknowledged still in memory. What a cap does not
admit is counted under `~other` of its service, and how often that happened under `kernob.lost` with the cause
`series_cap`.

Read counters by their increase: `increase(process_network_io_bytes_total[1m])` (as VictoriaMetrics and
Prometheus name it; dots become underscores, the unit and `total` are added). Unchanged series are sent again
once a minute (`KERNOB_RESEND_INTERVAL`): let `rate()` look over at least two of these.
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


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD, table("Traffic", SPECS), table("Kernob itself", OWN_METRICS)])


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
