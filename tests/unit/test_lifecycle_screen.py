# SPDX-License-Identifier: Apache-2.0
"""`kernob lifecycle` as it is read: loops first, then programs, then the newest ends."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from kernob.state.crash_loops import CrashRow, Loop
from kernob.state.crash_policy import Parent
from kernob.state.endings import ending_of
from kernob.state.life_events import Happening
from kernob.state.life_report import document
from kernob.state.life_sentences import ended, loop_began, loop_ended, who
from kernob.state.lifecycle import EXIT, Program, ProgramTurns
from kernob.ui.lifecycle import page

WORKER = Program("python3.11", "worker.py", "worker.py")
ROW = CrashRow((7, 100, 5), 1, 4711, 13, 14, 0, 28, 0, 10**9, 7 * 10**7, forked=False, codes={})
LOOP = Loop(ROW, 10**9, 21 * 10**9, 13, 13, 14, {139 << 8: 13, 9: 1}, 0.0048)
END = Happening(10**18, EXIT, 11 | 0x80, False, 4711, 5, 0.4, 100, "sh", WORKER, "worker.py --token=***")


def report(*, loops: bool) -> dict[str, Any]:
    """A document as the agent answers it."""
    turns = [ProgramTurns(WORKER, 14, 14, {139 << 8: 13, 9: 1})]
    found = [(WORKER, Parent(100, "keep.sh"), LOOP)] if loops else []
    return document({"forks": 1234, "execs": 14, "exits": 1200}, turns, found, [END], 20, 0)


def shown(answer: dict[str, Any], width: int = 160) -> str:
    """The page as text."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(page(answer, width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_loop_stands_first() -> None:
    """Who crashes, how often, how it ends, who restarts it."""
    text = shown(report(loops=True))
    assert text.startswith("1,234 forks, 14 execs, 1,200 exits since the agent started")
    assert "CRASH LOOPS NOW: 1" in text
    assert "exit code 139 x13, SIGKILL x1" in text
    assert "keep.sh (100)" in text
    assert "4.8 ms" in text
    assert "SIGSEGV, core dumped" in text


def test_long_names_and_command_lines_cut_no_other_column() -> None:
    """Each end is one line with its time, PID, life and reason whole; a name keeps its end, too."""
    name = "a-very-long-named-worker-of-the-billing-department.py"
    program = Program("python3.11", name, name)
    end = Happening(10**18, EXIT, 3 << 8, False, 4711, 5, 0.4, 100, "sh", program, "/usr/bin/x " * 30)
    turns = [ProgramTurns(program, 1, 1, {3 << 8: 1})]
    for width in (80, 100, 120):
        text = shown(document({"forks": 1, "execs": 1, "exits": 1}, turns, [], [end], 20, 0), width)
        (line,) = (each for each in text.splitlines() if "4711" in each)
        assert re.match(r"09-09 01:46:40\.000  a-very-l\S*…\S*t\.py +4711  400\.0 ms  exit code 3", line), (
            line
        )
        assert ("/usr/bin/x" in line) == (width >= 100)
        assert max(map(len, text.splitlines())) <= width


def test_calm_is_said() -> None:
    """No loop is an answer, too."""
    assert "No crash loops." in shown(report(loops=False))


def test_sentences_can_be_read_aloud() -> None:
    """Each of them."""
    name = who("worker.py", "python3.11", 4711)
    assert ended(name, ending_of(11 | 0x80), 0.4, "") == (
        "worker.py (python3.11, PID 4711) was killed by SIGSEGV after 0.4 s, core dumped"
    )
    assert ended(name, ending_of(9 | 1 << 16), 75, "") == (
        "worker.py (python3.11, PID 4711) was killed because memory ran out after 1 min 15 s"
    )
    assert loop_began("worker.py", LOOP, "keep.sh (PID 100)") == (
        "worker.py is in a crash loop: 13 restarts so far, lives of 4.8 ms, exit code 139 (13 times), "
        "SIGKILL (once), started again by keep.sh (PID 100)"
    )
    assert loop_ended("worker.py", LOOP).startswith("worker.py: the crash loop of 20 s is over")
