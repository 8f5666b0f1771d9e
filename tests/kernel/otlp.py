# SPDX-License-Identifier: Apache-2.0
"""Reads what `kernob run --otlp-file` wrote: every counter series, point by point, and its final sums.

A path enters, a `Totals` leaves. Standard library only, so that the tests share no code with the agent.
Reading checks what every counter must keep: a series begins with a 0 point stamped with its start, its
values never fall, its times never go back.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROCESS_IO = "process.network.io"
FLOW_IO = "kernob.flow.io"
PROCESS_FLOW_IO = "kernob.process.flow.io"
OTHER = "~other"

Attributes = dict[str, Any]
SeriesKey = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass
class Life:
    """One series from one start on: (time_unix_ns, value) of each point in the order of the file."""

    points: list[tuple[int, int]] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The latest value."""
        return self.points[-1][1]


class Totals:
    """The counter series of one file. A series that began anew (PID reuse) has several lives."""

    def __init__(self, lives: dict[SeriesKey, dict[int, Life]]) -> None:
        self.lives = lives

    def series(self, metric: str) -> Iterator[tuple[Attributes, int]]:
        """(attributes, final sum over all lives) of every series of a metric."""
        for (name, attributes), lives in self.lives.items():
            if name == metric:
                yield dict(attributes), sum(life.last for life in lives.values())

    def process_io(self) -> dict[int, Counter[tuple[str, str]]]:
        """Bytes by pid, then (direction, transport), over all executables of that pid."""
        found: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        for a, value in self.series(PROCESS_IO):
            if "process.pid" in a:
                found[a["process.pid"]][a["network.io.direction"], a["network.transport"]] += value
        return found

    def images(self, pid: int, direction: str = "transmit") -> dict[str, int]:
        """Bytes of one pid and direction by executable name."""
        found: Counter[str] = Counter()
        for a, value in self.series(PROCESS_IO):
            if a.get("process.pid") == pid and a["network.io.direction"] == direction:
                found[a["process.executable.name"]] += value
        return dict(found)

    def services(self, pids: set[int]) -> set[str]:
        """The services that these processes were charged to."""
        return {a["kernob.service"] for a, _ in self.series(PROCESS_IO) if a.get("process.pid") in pids}

    def flow_io(self, services: set[str]) -> Counter[tuple[str, str, int, str, str]]:
        """Bytes by (role, address, port, direction, transport) over these services."""
        found: Counter[tuple[str, str, int, str, str]] = Counter()
        for a, value in self.series(FLOW_IO):
            if a["kernob.service"] in services:
                transport = a["network.transport"]
                role = a.get("network.tcp.handshake.role", "") if transport == "tcp" else ""
                address, port = a.get("server.address", ""), a.get("server.port", 0)
                found[role, address, port, a["network.io.direction"], transport] += value
        return found

    def process_flow_io(self) -> dict[int, Counter[tuple[str, int, str, str]]]:
        """Bytes by pid, then (address, port, direction, transport)."""
        found: dict[int, Counter[tuple[str, int, str, str]]] = defaultdict(Counter)
        for a, value in self.series(PROCESS_FLOW_IO):
            if "process.pid" in a:
                address, port = a.get("server.address", ""), a.get("server.port", 0)
                key = (address, port, a["network.io.direction"], a["network.transport"])
                found[a["process.pid"]][key] += value
        return found

    def sum_of(self, metric: str) -> int:
        """All bytes of a metric, over everything."""
        return sum(value for _, value in self.series(metric))


def _value(point: dict[str, Any]) -> int:
    return int(point["asInt"]) if "asInt" in point else int(point.get("asDouble", 0))


def _attribute(value: dict[str, Any]) -> Any:
    """An AnyValue of OTLP JSON: 64-bit integers are strings there."""
    ((kind, raw),) = value.items()
    return int(raw) if kind == "intValue" else raw


def _points(request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in request.get("resourceMetrics", []):
        for scope in resource.get("scopeMetrics", []):
            for metric in scope.get("metrics", []):
                if metric.get("sum", {}).get("isMonotonic"):
                    if metric["sum"]["aggregationTemporality"] not in (
                        2,
                        "AGGREGATION_TEMPORALITY_CUMULATIVE",
                    ):
                        raise AssertionError(f"{metric['name']} is not cumulative")
                    for point in metric["sum"].get("dataPoints", []):
                        yield metric["name"], point


def read_totals(path: Path) -> Totals:
    """Parse the file (complete lines only) and check each series; AssertionError says what is wrong."""
    lives: dict[SeriesKey, dict[int, Life]] = defaultdict(lambda: defaultdict(Life))
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        for name, point in _points(json.loads(line)):
            pairs = ((a["key"], _attribute(a["value"])) for a in point.get("attributes", []))
            key = (name, tuple(sorted(pairs)))
            start = int(point["startTimeUnixNano"])
            lives[key][start].points.append((int(point["timeUnixNano"]), _value(point)))
    for key, by_start in lives.items():
        if key[0] in (PROCESS_IO, FLOW_IO, PROCESS_FLOW_IO):
            for start, life in by_start.items():
                _check(key, start, life)
    return Totals({key: dict(by_start) for key, by_start in lives.items()})


def _check(key: SeriesKey, start: int, life: Life) -> None:
    """What every byte counter keeps."""
    if life.points[0] != (start, 0):
        raise AssertionError(f"{key} started {start} does not begin with 0 there but with {life.points[0]}")
    grown = 0
    for (time, value), (next_time, next_value) in zip(life.points, life.points[1:], strict=False):
        if next_value < value:
            raise AssertionError(f"{key} fell from {value} to {next_value}")
        if next_time < time or (next_time - time < 1_000_000 and next_value != value):
            raise AssertionError(f"{key} grew at {next_time}, less than a millisecond after {time}")
        grown += next_value - value
    if grown != life.last:
        raise AssertionError(f"{key}: increases sum to {grown}, the last value is {life.last}")
