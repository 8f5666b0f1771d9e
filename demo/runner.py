# SPDX-License-Identifier: Apache-2.0
"""Brings business and stack up and tells the stories: one after another, lane beside lane, or all at once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from compose.project import Stack
from compose.victoria import QueryError

from .business import Business
from .owned import wait_until
from .scene import Scene
from .screen import Screen
from .story import PAYMENTS, MissingError, Outcome, Story, judge, lanes

_DATA_LIMIT_S = 120.0
_COLOURS = {"fault": "yellow", "log": "dim", "kernob": "cyan", "check": "green", "see": "dim"}


class Runner:
    """One run of the demo."""

    def __init__(self, business: Business, stack: Stack, screen: Screen, *, faulty: bool) -> None:
        self._business = business
        self._stack = stack
        self._screen = screen
        self._faulty = faulty
        self._agent_id = ""
        self._ended = threading.Event()

    def bring_up(self, services: Sequence[str]) -> None:
        """The stack first, so that it sees the business begin; until both are in VictoriaMetrics."""
        self._stack.up(*services)
        self._agent_id = self._stack.containers()["agent"]["Id"]
        self._screen.doing("the business opens")
        self._business.start()
        self._screen.doing("its first figures")
        wait_until(self._has_data, "the shop's first figures in VictoriaMetrics", _DATA_LIMIT_S, 0.5)

    def _has_data(self) -> bool:
        try:
            self._stack.victoria.flush()
            return bool(self._stack.victoria.query('kernob_flow_io_bytes_total{kernob_service="shop.py"}'))
        except QueryError:
            return False

    def tell(self, stories: Sequence[Story], pause_s: float, *, beside: bool) -> list[Outcome]:
        """All of them, printed as they end; outcomes in the order given.

        `beside`: lanes beside each other (`story.lanes`). Without faults all at once: they only wait.
        """
        queues = lanes(stories, beside) if self._faulty else [[story] for story in stories]
        with ThreadPoolExecutor(len(queues)) as pool:
            try:
                futures = [pool.submit(self._play_all, queue, pause_s) for queue in queues]
                outcomes = {each.story.name: each for future in futures for each in future.result()}
            finally:
                self._ended.set()
        return [outcomes[story.name] for story in stories]

    def _play_all(self, stories: Sequence[Story], pause_s: float) -> list[Outcome]:
        """One lane; stops where the demo was interrupted meanwhile."""
        return [self._tell(story) for story in stories if not self._ended.wait(pause_s)]

    def _tell(self, story: Story) -> Outcome:
        """One story. Those that rest on scores are told once more if something was not seen.

        A machine that is too busy to answer in time costs the payment service real points of its score.
        """
        outcome = self._play(story)
        if story.lane != PAYMENTS or not self._faulty or outcome.seen:
            return outcome
        self._screen.doing(f"{story.name}: once more, in case the machine was too busy")
        return dataclasses.replace(self._play(story), tries=2)

    def _play(self, story: Story) -> Outcome:
        grafana = "grafana" in self._stack.services()
        scene = Scene(
            self._business, self._stack, self._screen, self._faulty, grafana, self._agent_id, story.name,
            ended=self._ended,
        )  # fmt: skip
        began_s = time.monotonic()
        missing = broken = ""
        try:
            story.run(scene)
        except MissingError as error:
            missing = str(error)
        except Exception as error:  # whatever it is, the other stories are told
            broken = f"{type(error).__name__}: {error}"
        finally:
            scene.close()
        outcome = Outcome(story, time.monotonic() - began_s, missing, broken)
        self._show(outcome, scene.told)
        return outcome

    def _show(self, outcome: Outcome, told: Sequence[tuple[str, str]]) -> None:
        verdict, screen = judge(outcome, self._faulty), self._screen
        word = screen.paint(verdict.word, "green" if verdict.good else "red")
        title = screen.paint(outcome.story.title, "bold")
        lines = [f"{title}  [{outcome.story.name}]"]
        if self._faulty or not verdict.good:
            lines += [screen.labelled(label, text, _COLOURS[label]) for label, text in told]
        why = f": {verdict.why}" if verdict.why else ""
        lines += [f"   {word}{why} ({outcome.seconds:.0f} s)", ""]
        screen.block(lines)

    def keep(self) -> None:
        """Leave it running until interrupted; says where to look."""
        for name in ("GRAFANA", "VICTORIAMETRICS", "VMALERT"):
            self._screen.line(f"   {name.lower():<16} {self._stack.url(name)}")
        self._screen.line(f"   kept; the business's logs are in {self._business.place}; Ctrl-C takes it down")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            self._screen.line()
