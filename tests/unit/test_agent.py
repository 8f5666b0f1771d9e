# SPDX-License-Identifier: Apache-2.0
"""The tick loop and who watches it, over a pipeline whose ticks the test lets go one by one."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from kernob import agent as agent_module
from kernob.agent import Agent
from kernob.model import Snapshot

LIMIT_S = 30.0


class ScriptedPipeline:
    """Ticks when told to; a snapshot's time is the tick's number, flows are there if asked for."""

    hooks = ()
    store = None

    def __init__(self, *_: Any) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.ticks = 0

    def __enter__(self) -> ScriptedPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self) -> None:
        pass

    def detach(self) -> None:
        self.go.release(1000)

    def events(self) -> list[Any]:
        return []

    summaries = events

    def tick(self, window_s: float, with_flows: bool) -> Snapshot:
        self.ticks += 1
        number = self.ticks
        self.begun.release()
        assert self.go.acquire(timeout=LIMIT_S)
        flows: Any = ("a flow",) if with_flows else ()
        return Snapshot(number, 0, window_s, "vm", flows, (), (), {})


def test_who_comes_during_a_tick_is_not_given_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """That tick lists no flows, since nobody watched when it began: `top --once` would show an empty host."""
    made: list[ScriptedPipeline] = []

    def pipeline(*_: Any) -> ScriptedPipeline:
        made.append(ScriptedPipeline())
        return made[-1]

    monkeypatch.setattr(agent_module, "check_machine", lambda: None)
    monkeypatch.setattr(agent_module, "Pipeline", pipeline)
    settings: Any = SimpleNamespace(
        otlp=SimpleNamespace(export_interval_s=None), scrape_interval_s=3600.0, aggregation_window_s=1.0
    )
    found: list[Snapshot] = []
    with Agent(settings) as watched:
        (ticking,) = made
        assert ticking.begun.acquire(timeout=LIMIT_S)  # the first tick is under way, and nobody watches
        subscription = watched.subscribe(0.2)
        reader = threading.Thread(target=lambda: found.append(next(subscription)))
        reader.start()
        while not watched._watchers:
            assert reader.is_alive()
        ticking.go.release(2)
        reader.join(LIMIT_S)
        subscription.close()
    assert [(each.time_unix_ns, len(each.flows)) for each in found] == [(2, 1)]
