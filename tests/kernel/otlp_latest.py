# SPDX-License-Identifier: Apache-2.0
"""Reads the latest value of every gauge and histogram out of what `kernob run --otlp-file` wrote.

Standard library only, like otlp.py. A gauge that ended (no recorded value) is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Attributes = dict[str, Any]


@dataclass
class Histogram:
    """An exponential histogram as OTLP has it: counts by upper bound in seconds."""

    count: int
    sum_s: float
    buckets: list[tuple[float, float, int]]

    def quantile_bounds(self, share: float) -> tuple[float, float]:
        """Bounds of the bucket that the value of this rank lies in."""
        rank, seen = share * self.count, 0
        for lower, upper, count in self.buckets:
            seen += count
            if seen >= rank:
                return lower, upper
        raise AssertionError("an empty histogram has no quantiles")


def _plain(attributes: list[dict[str, Any]]) -> tuple[tuple[str, Any], ...]:
    found = []
    for each in attributes:
        ((kind, raw),) = each["value"].items()
        found.append((each["key"], int(raw) if kind == "intValue" else raw))
    return tuple(found)


def _latest(path: Path, name: str, kind: str) -> dict[tuple[tuple[str, Any], ...], dict[str, Any]]:
    found: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        for resource in json.loads(line).get("resourceMetrics", []):
            for scope in resource.get("scopeMetrics", []):
                for metric in scope.get("metrics", []):
                    if metric["name"] == name:
                        for point in metric[kind]["dataPoints"]:
                            found[_plain(point.get("attributes", []))] = point
    return found


def gauges(path: Path, name: str) -> Iterator[tuple[Attributes, int]]:
    """(attributes, value) of each series of a gauge that stands."""
    for attributes, point in _latest(path, name, "gauge").items():
        if not int(point.get("flags", 0)) & 1:
            yield dict(attributes), int(point["asInt"])


def histograms(path: Path, name: str) -> Iterator[tuple[Attributes, Histogram]]:
    """(attributes, histogram) of each series of a histogram."""
    for attributes, point in _latest(path, name, "exponentialHistogram").items():
        base = 2.0**2.0 ** -int(point["scale"])
        zero = int(point.get("zeroCount", 0))
        buckets = [(0.0, float(point.get("zeroThreshold", 0.0)), zero)] if zero else []
        positive = point.get("positive", {})
        offset = int(positive.get("offset", 0))
        for index, count in enumerate(positive.get("bucketCounts", []), offset):
            buckets.append((base**index, base ** (index + 1), int(count)))
        assert sum(count for _, _, count in buckets) == int(point["count"])
        yield dict(attributes), Histogram(int(point["count"]), float(point["sum"]), buckets)
