# SPDX-License-Identifier: Apache-2.0
"""Crash loops by counts and times alone: when they begin, when they end, and who can be in one."""

from __future__ import annotations

import dataclasses

import pytest

from kernob.state.crash_loops import CrashLoops, CrashRow
from kernob.state.crash_policy import Parent, can_crash
from kernob.state.endings import OOM, ending_of

S = 10**9
ROW = CrashRow((7, 100, 5), 1, 4711, 0, 0, 0, 0, 0, 0, 0, forked=False, codes={})


class Story:
    """One command line that fails again and again, read once a second."""

    def __init__(self, *, judged: bool = True, restarts: int = 3, window_s: int = 120) -> None:
        self.row = ROW
        self.asked: list[tuple[int, int]] = []
        self.loops = CrashLoops(restarts, window_s * S, self._judge)
        self._judged = judged

    def _judge(self, _row: CrashRow, failures: int, siblings: int) -> bool:
        self.asked.append((failures, siblings))
        return self._judged

    def fail(
        self, at_s: float, times: int = 1, *, serial: bool = True, code: int = 3 << 8, others: int = 0
    ) -> None:
        """So many failures, the last one then; `others`: further children of the parent that ended."""
        row, codes = self.row, dict(self.row.codes)
        codes[code] = codes.get(code, 0) + times
        restarts = times - (not row.failures) if serial else 0
        self.row = dataclasses.replace(
            row, restarts=row.restarts + restarts, failures=row.failures + times, last_ns=round(at_s * S),
            siblings=row.siblings + times + others, life_ns=row.life_ns + times * 5_000_000, codes=codes,
        )  # fmt: skip

    def read(self, now_s: float) -> list[tuple[str, int]]:
        """What changed: (over, restarts)."""
        return [(loop.over, loop.restarts) for loop in self.loops.update([self.row], round(now_s * S))]


def test_it_begins_with_the_third_restart_and_ends_when_nothing_failed_for_a_window() -> None:
    """Four failed lives one after the other are three restarts."""
    story = Story()
    for second in range(1, 4):
        story.fail(second)
        assert story.read(second) == []
    story.fail(4)
    assert story.read(4) == [("", 3)]
    story.fail(5)
    assert story.read(5) == []
    (loop,) = story.loops.current(5 * S)
    assert (loop.restarts, loop.recent, loop.failures, loop.codes) == (4, 4, 5, {3 << 8: 5})
    assert loop.life_s == pytest.approx(0.005)
    assert story.read(124) == []
    assert story.read(126) == [("nothing failed any more", 4)]
    assert story.loops.current(126 * S) == []


def test_lives_of_five_milliseconds_are_seen_in_one_reading() -> None:
    """A tick may find all of them at once."""
    story = Story()
    story.fail(9.9, times=1800)
    assert story.read(10) == [("", 1799)]


def test_one_that_fails_once_a_minute_is_none() -> None:
    """As a timer of systemd or a cron job does: three failures stand in two minutes."""
    story = Story()
    for minute in range(1, 60):
        story.fail(60 * minute)
        assert story.read(60 * minute + 1) == []


def test_a_slow_restart_keeps_a_loop_going() -> None:
    """Docker waits up to a minute between restarts: the loop neither ends nor begins anew."""
    story = Story()
    story.fail(10, times=6)
    assert story.read(10) == [("", 5)]
    for minute in range(1, 10):
        story.fail(10 + 60 * minute)
        assert story.read(12 + 60 * minute) == []
    assert story.loops.current(552 * S)[0].restarts == 14


def test_many_killed_at_once_were_not_restarted() -> None:
    """A pool of fifty workers that all fail together."""
    story = Story()
    story.fail(5, times=50, serial=False)
    assert story.read(6) == []


def test_a_success_breaks_it() -> None:
    """Failures and successes by turns are no loop; a success ends one."""
    story = Story()
    story.fail(1, times=3)
    assert story.read(1) == []
    story.row = dataclasses.replace(story.row, successes=1)
    assert story.read(2) == []
    story.fail(3, times=3)
    assert story.read(3) == [("", 3)]
    story.row = dataclasses.replace(story.row, successes=2)
    assert story.read(4) == [("it ended well", 3)]


def test_siblings_are_those_of_the_same_time() -> None:
    """What the parent's other children did before the first failure does not matter."""
    story = Story(judged=False)
    story.row = dataclasses.replace(story.row, siblings=1000, siblings_before=1000)
    story.fail(1, times=4, others=2)
    assert story.read(1) == []
    assert story.asked == [(4, 6)]


def test_an_entry_that_another_one_took_the_place_of_begins_anew() -> None:
    """The kernel's map forgets the least recently used: counts that fell are new counts."""
    story = Story()
    story.fail(1, times=3)
    story.read(1)
    story.row = ROW
    story.fail(2, times=2)
    assert story.read(2) == []
    assert story.loops.update([], 3 * S) == []
    assert story.loops.current(3 * S) == []


SEGV, TERM, ONE = 11 | 0x80, 15, 1 << 8
SYSTEMD, SHELL = Parent(1, "systemd"), Parent(300, "loop.sh")


@pytest.mark.parametrize(
    ("what", "name", "parent", "code", "more", "loops"),
    [
        ("a unit", "worker", SYSTEMD, ONE, {"siblings": 1000}, True),
        ("under supervisord", "worker.py", Parent(40, "supervisord"), ONE, {"siblings": 1000}, True),
        ("under runit", "run", Parent(41, "runsv"), 111 << 8, {}, True),
        ("grep as a service", "grep", SYSTEMD, ONE, {}, True),
        ("a container's first process", "worker", None, ONE, {"is_container": True}, True),
        ("a health check", "curl", Parent(50, "containerd-shim-runc-v2"), ONE, {}, False),
        ("whose parent is gone", "worker", None, SEGV, {}, False),
        ("a shell's loop", "worker.py", SHELL, ONE, {"siblings": 20}, True),
        ("a shell's loop that does much else", "worker.py", SHELL, ONE, {"siblings": 21}, False),
        ("grep in a loop", "grep", SHELL, ONE, {}, False),
        ("a test in a loop", "[", SHELL, ONE, {}, False),
        ("a poll", "curl", SHELL, 7 << 8, {}, False),
        ("a poll by sh -c", "sh", Parent(9, "watch"), ONE, {}, False),
        ("a tool that crashes", "curl", SHELL, SEGV, {}, True),
        ("a forked worker's code", "pool.py", Parent(60, "pool.py"), ONE, {"forked": True}, False),
        ("a forked worker that crashes", "pool.py", Parent(60, "pool.py"), SEGV, {"forked": True}, True),
        ("a connection's process", "sshd", Parent(61, "sshd"), 255 << 8, {}, False),
        ("a compiler in a build", "cc1", Parent(70, "make"), ONE, {"siblings": 3000}, False),
        ("a configure script's program", "conftest", Parent(71, "configure"), ONE, {"siblings": 9}, False),
    ],
)  # fmt: skip
def test_who_can_crash(
    what: str, name: str, parent: Parent | None, code: int, more: dict[str, int], *, loops: bool
) -> None:
    """The table of what is told apart by who failed and under whom."""
    siblings, forked, is_container = more.get("siblings", 4), more.get("forked"), more.get("is_container")
    assert (
        can_crash(
            name, parent, {code: 4},
            forked=bool(forked), is_container=bool(is_container), failures=4, siblings=siblings,
        )
        is loops
    ), what  # fmt: skip


@pytest.mark.parametrize(
    ("code", "failed"),
    [(0, False), (ONE, True), (SEGV, True), (9, True), (9 | OOM, True), (TERM, False), (1, False), (2, False),
     (13, False), (143 << 8, False), (130 << 8, False), (137 << 8, True), (255 << 8, True), (6, True),
     (14, True)],
)  # fmt: skip
def test_what_is_a_failure(code: int, *, failed: bool) -> None:
    """As systemd has it: code 0 and the signals that ask a process to end are none."""
    assert ending_of(code).failed is failed
