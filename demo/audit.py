# SPDX-License-Identifier: Apache-2.0
"""Holds docs/metrics.md (the specifications in the code) against what a whole run put into VictoriaMetrics.

Enters: names of metrics there. Leaves: those that no page has, and those of the page that never came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compose.victoria import Victoria
from scripts.metrics_doc import SECTIONS, prometheus_name

NOT_HERE = {
    "kernob.coverage": "interfaces that lead somewhere; nothing of the demo leaves the machine",
    "kernob.export.failures": "a Collector that refuses",
    "kernob.map.edge.address": "other hosts; nothing of the demo leaves the machine",
    "kernob.probe.run_time": "KERNOB_BPF_STATS",
    "kernob.probe.runs": "KERNOB_BPF_STATS",
    "kernob.process.oom_kills": "a kill for memory",
    "kernob.tcp.stalls": "a peer that does not read",
    "kernob.tcp.timeouts": "a network that is away for a quarter of an hour",
}
"""Metrics that a run need not bring, and what it would take."""
_RECORDED = ":"
"""Stands in the names of series that rules make, which are documented beside them."""
_PARTS = ("_bucket", "_count", "_sum")


@dataclass(frozen=True)
class Audit:
    """What was held against each other; `good` if nothing is left over on either side."""

    seen: int
    undocumented: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether the page and the database have the same metrics."""
        return not self.undocumented and not self.absent

    @property
    def line(self) -> str:
        """The same in a line."""
        parts = [
            f"metrics: {self.seen} of docs/metrics.md came, {len(NOT_HERE)} more need what is not in the demo"
        ]
        if self.undocumented:
            parts.append(f"undocumented: {', '.join(self.undocumented)}")
        if self.absent:
            parts.append(f"never came: {', '.join(self.absent)}")
        return "; ".join(parts)


def audit(names: Iterable[str]) -> Audit:
    """Hold names as VictoriaMetrics has them against the page.

    >>> found = audit(["kernob_flow_io_bytes_total", "kernob_tcp_rtt_seconds_bucket", "kernob_odd", "a:b"])
    >>> found.seen, found.undocumented, "kernob.flow.io" in found.absent, "kernob.tcp.drops" in found.absent
    (2, ('kernob_odd',), False, True)
    """
    documented = {prometheus_name(spec): spec.name for specs in SECTIONS.values() for spec in specs}
    came = {_whole(name, documented) for name in names if _RECORDED not in name}
    absent = {name for key, name in documented.items() if key not in came} - set(NOT_HERE)
    undocumented = came - set(documented)
    return Audit(len(came) - len(undocumented), tuple(sorted(undocumented)), tuple(sorted(absent)))


def _whole(name: str, documented: Iterable[str]) -> str:
    """A histogram's name for one of its parts."""
    wholes = (name.removesuffix(part) for part in _PARTS if name.endswith(part))
    return next((whole for whole in wholes if whole in documented), name)


def ask(victoria: Victoria) -> Audit:
    """The same of everything that the agent sent."""
    victoria.flush()
    found = victoria.query('group by (__name__) (last_over_time({service_name="kernob"}[1h]))')
    return audit(sample.labels["__name__"] for sample in found)
