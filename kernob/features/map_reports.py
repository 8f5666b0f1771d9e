# SPDX-License-Identifier: Apache-2.0
"""What `kernob map` and `kernob destinations` are answered by a running agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernob.features.feature import Report
from kernob.model.service_map import as_dict
from kernob.state.baseline import Baseline, Key
from kernob.state.destination_choice import choose
from kernob.state.service_map import MapState


class MapReports:
    """Documents made of the map as it stands."""

    def __init__(
        self,
        host: str,
        state: MapState,
        baseline: Baseline,
        score: Callable[[int], Mapping[str, float]],
        on_forget: Callable[[set[Key]], None],
    ) -> None:
        """`on_forget` is told what was taken out of the baseline: service, target, port."""
        self._on_forget = on_forget
        self._host = host
        self._state = state
        self._baseline = baseline
        self._score = score

    def all(self) -> dict[str, Report]:
        """By name."""
        return {"map": self._map, "destinations": self._destinations}

    def _map(self, words: Mapping[str, str]) -> Mapping[str, Any]:
        """All nodes and edges; `since` (Unix time in ns) leaves out what was not seen since."""
        since_ns = _whole(words.get("since", "0"), "since")
        wanted = self._state.active(since_ns).tolist()
        nodes, edges = self._state.rows(wanted)
        rows = []
        for edge, row in zip(wanted, edges, strict=True):
            scores = dict(self._score(edge))
            rows.append(as_dict(row) | ({"scores": scores} if scores else {}))
        return {"host": self._host, "nodes": [as_dict(n) for n in nodes], "edges": rows}

    def _destinations(self, words: Mapping[str, str]) -> Mapping[str, Any]:
        """The baseline, or a change of it: `do` is list, accept or forget, the others choose rows."""
        rows = choose(self._baseline.rows(), words)
        todo = words.get("do", "list")
        keys = [(row.service, row.target, row.port) for row in rows]
        if todo == "list":
            shown = [as_dict(row) | {"state": row.state.value} for row in rows]
            return {"host": self._host, "destinations": shown}
        if todo == "accept":
            return {"changed": self._baseline.accept(keys), "matched": len(keys)}
        if todo == "forget":
            changed = self._baseline.forget(keys)
            self._on_forget(set(keys))
            return {"changed": changed, "matched": len(keys)}
        raise ValueError(f"do is {todo[:40]!r}: must be list, accept or forget")


def _whole(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ValueError(f"{name} must be a whole number")
    return int(text)
