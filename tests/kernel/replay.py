# SPDX-License-Identifier: Apache-2.0
"""A case that failed while the kernel ran no program for some event is played again, from its fixtures on.

Only with the kernel's own counters as witness (unrun.py): a failure without such an event stays one, and so
does the third in a row. What was played again is told in the summary, with the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

TRIES = 3
Unrun = Callable[[], Counter[str]]


class Replays:
    """A plugin for the tests under `directory`. `watch` begins to count what no program is run for."""

    def __init__(self, directory: Path, watch: Callable[[], Unrun | None]) -> None:
        self._directory = directory
        self._watch = watch
        self._unrun: Unrun | None = None
        self._watched = False
        self._told: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Plays the case, and again where that is due; True: nobody else need play it."""
        if not item.path.is_relative_to(self._directory):
            return None
        if not self._watched:
            self._unrun, self._watched = self._watch(), True
        if not self._unrun:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._play(item, nextitem, self._unrun):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _play(self, item: pytest.Item, nextitem: pytest.Item | None, unrun: Unrun) -> list[pytest.TestReport]:
        for again in reversed(range(TRIES)):
            before = unrun()
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            missed = unrun() - before
            failed = [report for report in reports if report.failed]
            if not failed or not missed or not again:
                break
            events = ", ".join(f"{name} {count}" for name, count in sorted(missed.items()))
            self._told.append(f"{item.nodeid}: {events}\n{failed[0].longreprtext}")
            item.session._setupstate.teardown_exact(None)  # other tests' fixtures have seen it, too
            item._initrequest()  # type: ignore[attr-defined]  # of pytest.Function: as at its first play
        return reports

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What was played again, why, and how it had failed."""
        if not self._told:
            return
        terminalreporter.section("played again: this kernel ran no program for some events")
        for told in self._told:
            terminalreporter.write_line(told)
        terminalreporter.write_line(f"kernel tests: {len(self._told)} played again")
