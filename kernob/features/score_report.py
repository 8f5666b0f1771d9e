# SPDX-License-Identifier: Apache-2.0
"""Scores as documents for clients: all of them, worst first, or one with everything it was made of.

In: the state of `features.scores` as of its last tick, a client's words. Out: JSON documents, which
`kernob.ui.scores` shows. docs/scores.md describes the fields.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from kernob.derive import scores as derive
from kernob.model import COMPOSITE, DIMENSIONS, Dependency, Dimension
from kernob.state.score_windows import Column, Timed

if TYPE_CHECKING:
    from kernob.features.scores import Scores

MOST_ROWS: Final = 1000
_INPUTS: Final = {
    Dimension.RELIABILITY: (Column.ATTEMPTS, Column.FAILED),
    Dimension.STABILITY: (Column.FINISHED, Column.DROPPED),
    Dimension.PACKET_HEALTH: (Column.SEGMENTS, Column.RETRANSMITS),
    Dimension.RESPONSIVENESS: (Column.WAITED, Column.SILENT),
}


class ScoreReport:
    """Reads `Scores`; keeps nothing."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def table(self, words: Mapping[str, str]) -> dict[str, Any]:
        """Every dependency and destination, worst first. Takes no words."""
        self._require()
        if words:
            raise ValueError("report scores takes no words")
        scores = self._scores
        rows = [self._row(name, row) for name, row in scores.dependencies.items() if row < len(scores.table)]
        rows.sort(key=_badness)
        hosts, table = scores.host_table()
        destinations = [
            {"address": host, "score": _numbers(table[index].tolist())}
            for index, host in enumerate(hosts)
            if not all(math.isnan(value) for value in table[index].tolist())
        ]
        destinations.sort(key=_badness)
        return {
            **self._rules(),
            "dependencies": rows[:MOST_ROWS],
            "destinations": destinations[:MOST_ROWS],
            "left_out": max(0, len(rows) - MOST_ROWS),
        }

    def explain(self, words: Mapping[str, str]) -> dict[str, Any]:
        """Every dependency on the destination that `words["host"]` names: an address, or address:port."""
        self._require()
        wanted = words.get("host", "").strip().lower()
        if not wanted or set(words) != {"host"}:
            raise ValueError("report score takes one word, host")
        items = self._scores.dependencies.items()
        found = [
            (name, row)
            for name, row in items
            if wanted in (name.address.lower(), f"{name.address.lower()}:{name.port}")
        ]
        found = [(name, row) for name, row in found if row < len(self._scores.table)]
        if not found:
            near = difflib.get_close_matches(wanted, sorted({name.address for name, _row in items}), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; kernob scores lists all"
            raise ValueError(f"nothing here has connected to {wanted[:100]!r} lately{hint}")
        explained = [self._explained(name, row) for name, row in found[:MOST_ROWS]]
        explained.sort(key=_badness)
        return {**self._rules(), "host": wanted, "dependencies": explained}

    def _require(self) -> None:
        if not self._scores.on:
            raise ValueError("scores are switched off (KERNOB_SCORES, KERNOB_TCP)")

    def _rules(self) -> dict[str, Any]:
        rules = self._scores.rules
        return {
            "window_s": rules.window_s,
            "half_life_s": rules.half_life_s,
            "bucket_s": rules.bucket_s,
            "weights": dict(zip(DIMENSIONS, rules.weights, strict=True)),
            "min_samples": dict(zip(DIMENSIONS, rules.min_samples, strict=True)),
        }

    def _row(self, name: Dependency, row: int) -> dict[str, Any]:
        scores = self._scores
        reasons = scores.dependencies.windows.reasons(row)
        failed = int(scores.dependencies.failed_unix_ns[row]) / 1e9
        counts = derive.samples(scores.sums)[row].tolist() if row < len(scores.sums.raw) else []
        return {
            "service": name.service,
            "address": name.address,
            "port": name.port,
            "score": _numbers(scores.table[row].tolist()),
            "samples": dict(zip(DIMENSIONS, counts, strict=False)),
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            "last_failure_unix_s": failed if reasons and failed else None,
            "failing_now": int(scores.dependencies.failing_now[row]),
        }

    def _explained(self, name: Dependency, row: int) -> dict[str, Any]:
        document = self._row(name, row)
        document["dimensions"] = [self._dimension(dimension, row) for dimension in Dimension]
        return document

    def _dimension(self, dimension: Dimension, row: int) -> dict[str, Any]:
        """One line of the sum: its inputs, its share of the composite, and when it is calm again."""
        scores = self._scores
        rules, sums, windows = scores.rules, scores.sums, scores.dependencies.windows
        value = float(scores.table[row, dimension])
        present = [not math.isnan(each) for each in scores.table[row, :-1].tolist()]
        weight = rules.weights[dimension]
        total = sum(each for each, there in zip(rules.weights, present, strict=True) if there)
        line: dict[str, Any] = {
            "name": dimension.name.lower(),
            "score": None if math.isnan(value) else round(value, 4),
            "share": round(weight / total, 4) if total and present[dimension] else 0.0,
            "samples": int(derive.samples(sums)[row, dimension]),
            "min_samples": rules.min_samples[dimension],
        }
        if dimension in _INPUTS:
            whole, bad = _INPUTS[dimension]
            line |= {
                "total": int(sums.raw[row, whole]),
                "bad": int(sums.raw[row, bad]),
                "weighted_total": round(float(sums.weighted[row, whole]), 3),
                "weighted_bad": round(float(sums.weighted[row, bad]), 3),
                "clear_in_s": windows.clear_in_s(row, bad),
            }
        else:
            line["durations"] = {kind.name.lower(): self._duration(kind, row) for kind in Timed}
            line["clear_in_s"] = rules.window_s if value < 1 else None
        return line

    def _duration(self, kind: Timed, row: int) -> dict[str, Any]:
        scores = self._scores
        recent, usual = float(scores.recent_s[row, kind]), float(scores.usual_s[row, kind])
        rules = scores.rules
        known = not math.isnan(usual)
        name = scores.dependencies.name(row)
        return {
            "samples": int(scores.sums.timed[row, kind]),
            "p95_s": None if math.isnan(recent) else round(recent, 6),
            "baseline_s": round(usual, 6) if known else None,
            "objective": name is not None and scores.has_objective(name.address),
            "good_s": max(rules.latency_good * usual, usual + rules.latency_slack_s) if known else None,
            "bad_s": max(rules.latency_bad * usual, usual + rules.latency_slack_s) if known else None,
        }


def _numbers(values: list[float]) -> dict[str, float | None]:
    names = (*DIMENSIONS, COMPOSITE)
    return {n: None if math.isnan(v) else round(v, 4) for n, v in zip(names, values, strict=True)}


def _badness(document: dict[str, Any]) -> tuple[Any, ...]:
    """What fails now comes first, then the lowest composite; those without one last."""
    value = document["score"][COMPOSITE]
    failing = document.get("failing_now", 0)
    return (not failing, value is None, value or 0.0, document.get("service", ""), document["address"])
