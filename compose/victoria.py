# SPDX-License-Identifier: Apache-2.0
"""Asks VictoriaMetrics over its HTTP API what it holds. Called by the tests of the stack.

Enters: a base URL, MetricsQL. Leaves: samples as they came, counters as whole numbers.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import Any

COUNTERS = (
    "process_network_io_bytes_total",
    "kernob_flow_io_bytes_total",
    "kernob_process_flow_io_bytes_total",
)
_TIMEOUT_S = 60.0


class QueryError(Exception):
    """A query was refused, or VictoriaMetrics does not answer; the message says which and why."""


@dataclass(frozen=True)
class Sample:
    """One series of an instant query's answer."""

    labels: dict[str, str]
    value: float

    @property
    def exact(self) -> int:
        """The value as a whole number; ValueError if it is none."""
        if not math.isfinite(self.value) or self.value != int(self.value):
            raise ValueError(f"{self.labels} is {self.value!r}, not a whole number")
        return int(self.value)


class Victoria:
    """A VictoriaMetrics single node at `url` (http://host:port)."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: Any) -> str:
        """The text that a path answers; QueryError for anything but success."""
        query = urllib.parse.urlencode(parameters)
        request = urllib.request.Request(f"{self.url}{path}", data=query.encode())
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            raise QueryError(f"{path} {parameters}: {error.code} {error.read().decode()}") from error
        except OSError as error:
            raise QueryError(f"{path} {parameters}: {error}") from error

    def healthy(self) -> bool:
        """Whether it answers its health check."""
        try:
            return self.get("/health") == "OK"
        except QueryError:
            return False

    def flush(self) -> None:
        """Make everything that arrived visible to queries."""
        self.get("/internal/force_flush")

    def query(self, expression: str, at_s: float | None = None) -> list[Sample]:
        """An instant query at a Unix time (now)."""
        at_s = time.time() if at_s is None else at_s
        body = json.loads(self.get("/api/v1/query", query=expression, time=f"{at_s:.3f}", nocache=1))
        return [Sample(each["metric"], float(each["value"][1])) for each in body["data"]["result"]]

    def query_range(
        self, expression: str, start_s: float, end_s: float, step_s: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """A range query, as a panel makes it: labels and (Unix time, value) of each series."""
        answer = self.get(
            "/api/v1/query_range",
            query=expression,
            start=f"{start_s:.3f}",
            end=f"{end_s:.3f}",
            step=f"{step_s:.3f}",
            nocache=1,
        )
        found = json.loads(answer)["data"]["result"]
        return [(each["metric"], [(t, float(v)) for t, v in each["values"]]) for each in found]

    def export(self, selector: str) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
        """Raw samples, (Unix ms, value), of every series that a selector matches; up to an hour ahead."""
        end_s = f"{time.time() + 3600:.0f}"
        lines = self.get("/api/v1/export", **{"match[]": selector, "end": end_s}).splitlines()
        rows = [json.loads(line) for line in lines]
        return [
            (row["metric"], list(zip(row["timestamps"], map(float, row["values"]), strict=True)))
            for row in rows
        ]

    def grown(self, metric: str, by: str, since_s: float, selector: str = "") -> Counter[tuple[str, ...]]:
        """increase() of a counter from `since_s` (Unix time) to now, summed by labels, to the byte.

        `by` is a comma-separated list of labels, `selector` what stands between braces. Keys are the
        labels' values in that order.
        """
        now_s = time.time() + 1
        window_ms = math.ceil((now_s - since_s) * 1000)
        expression = f"sum by ({by}) (increase({metric}{{{selector}}}[{window_ms}ms]))"
        names = [name.strip() for name in by.split(",")]
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.query(expression, now_s):
            found[tuple(sample.labels.get(name, "") for name in names)] += sample.exact
        return found
