# SPDX-License-Identifier: Apache-2.0
"""A case that failed while the machine did what no case can allow for is played again, from its fixtures on.

Only with a witness that is not of the case: the kernel had an event and ran no program for it (unrun.py), or
a processor stood still (stalls.py). A failure without such a thing stays one, and so does the third in a row.
What was played again is told in the summary, with the reason and the failure.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

TRIES = 3
NOTICE_S = 0.1
"""In which a witness notices what lasts until now."""
Witness = Callable[[], Counter[str]]
"""What it has seen so far, by kind."""


class Replays:
    """A plugin for the tests under `directory`. `call` has the witnesses come, before the first of them."""

    def __init__(self, directory: Path, call: Callable[[], list[Witness]]) -> None:
        self._directory = directory
        self._call = call
        self._witnesses: list[Witness] | None = None
        self._told: list[str] = []
        self._kept: list[str] = []
        self._during: dict[str, Counter[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Plays the case, and again where that is due; True: nobody else need play it."""
        if not item.path.is_relative_to(self._directory):
            return None
        if self._witnesses is None:
            self._witnesses = self._call()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._play(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Notes what was seen while a module's fixture came: what it plays, several cases may look at."""
        if fixturedef.scope != "module" or self._witnesses is None:
            return (yield)
        before = self._seen()
        try:
            return (yield)
        finally:
            self._during[f"{fixturedef.baseid}::{fixturedef.argname}"] = self._seen() - before

    def _seen_for(self, item: pytest.Item, before: Counter[str]) -> Counter[str]:
        """What was seen since then, and while the fixtures came that the case shares with its module."""
        seen = self._seen() - before
        for name in item.fixturenames if isinstance(item, pytest.Function) else ():
            seen += self._during.get(f"{item.location[0]}::{name}", Counter())
        return seen

    def _seen(self) -> Counter[str]:
        return sum((witness() for witness in self._witnesses or ()), Counter())

    def _play(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        for again in reversed(range(TRIES)):
            before = self._seen()
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            failed = [report for report in reports if report.failed]
            if not failed or not again:
                break
            time.sleep(NOTICE_S)
            seen = self._seen_for(item, before)
            if not seen:
                break
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
            failure = self._tear_down(item)  # other tests' fixtures have seen it, too
            if failure is not None:
                self._kept.append(f"{item.nodeid}: {reasons}, but not played again: {failure!r}")
                break
            self._told.append(f"{item.nodeid}: {reasons}\n{failed[0].longreprtext}")
            item._initrequest()  # type: ignore[attr-defined]  # of pytest.Function: as at its first play
        return reports

    @staticmethod
    def _tear_down(item: pytest.Item) -> BaseException | None:
        """Ends all fixtures; what they raised, which out of here would end the session."""
        try:
            item.session._setupstate.teardown_exact(None)
        except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
            raise
        except BaseException as error:  # pytest.fail's, and a group of several, are no Exception
            return error
        return None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What was played again, why, and how it had failed; what could not be."""
        if not self._told and not self._kept:
            return
        terminalreporter.section("played again")
        for told in (*self._told, *self._kept):
            terminalreporter.write_line(told)
        terminalreporter.write_line(f"kernel tests: {len(self._told)} played again")
