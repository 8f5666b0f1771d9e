# SPDX-License-Identifier: Apache-2.0
"""What `kernob syscalls` and `kernob blocked` make of the agent's reports."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kernob.config import load_settings
from kernob.state.buckets import UPPER_S, bucket_of
from kernob.ui import blocked, syscalls
from kernob.ui.histograms import longest, octaves, quantile, span, sparkline
from kernob.ui.syscalls import Choice, growth, lines_of

BOUNDS_S: list[float] = UPPER_S.tolist()
SETTINGS = load_settings({})
S_NS = 10**9


def buckets(**counts: int) -> dict[str, int]:
    """Bucket -> count, of durations written as ns_N=count."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        bucket = str(bucket_of(int(name.removeprefix("ns_"))))
        found[bucket] = found.get(bucket, 0) + count
    return found


def row(pid: int, executable: str, service: str, call: str, time_s: float, **counts: int) -> dict[str, Any]:
    return {
        "pid": pid,
        "executable": executable,
        "service": service,
        "alive": True,
        "syscall": call,
        "time_s": time_s,
        "buckets": buckets(**counts),
    }


def report(*rows: dict[str, Any], time_s: int = 1_000) -> dict[str, Any]:
    return {
        "time_unix_ns": time_s * S_NS,
        "started_unix_ns": 900 * S_NS,
        "watched": ["read", "futex"],
        "bounds_s": BOUNDS_S,
        "rows": list(rows),
        "left_out": 0,
    }


ONE = row(1, "postgres", "postgresql.service", "read", 3.0, ns_1000000=1000, ns_180000000=10)
TWO = row(2, "postgres", "postgresql.service", "read", 1.0, ns_1000000=500)
THREE = row(3, "python3", "orders.py", "futex", 4.0, ns_180000000=20)


def printed(page: Any, width: int = 120) -> str:
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as text:
        console.print(page)
    return text.get()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.0000004, "400ns"),
        (0.00000123, "1.23us"),
        (0.0456, "45.6ms"),
        (0.9999, "1.00s"),
        (59.99, "60.0s"),
        (59.999, "60.0s"),
        (75, "1m 15s"),
        (7200, "2h 0m"),
        (200_000, "2d 7h"),
    ],
)
def test_durations_in_few_characters(seconds: float, text: str) -> None:
    """Three digits and a unit, or the two largest units."""
    assert span(seconds) == text
    assert len(text) <= 6


def test_quantiles_lie_within_nine_percent() -> None:
    """The middle of the bucket, which spans a quarter of an octave."""
    found = {int(b): n for b, n in buckets(ns_1000000=98, ns_180000000=2).items()}
    assert quantile(found, 0.5, BOUNDS_S) == pytest.approx(0.001, rel=0.1)
    assert quantile(found, 0.98, BOUNDS_S) == pytest.approx(0.001, rel=0.1)
    assert quantile(found, 0.99, BOUNDS_S) == pytest.approx(0.18, rel=0.1)
    assert 0.18 <= longest(found, BOUNDS_S) < 0.18 * 1.2
    assert quantile({}, 0.5, BOUNDS_S) == longest({}, BOUNDS_S) == 0


def test_bars_show_one_slow_call_beside_a_million_fast_ones() -> None:
    """Heights are logarithmic; a bucket with anything in it has a bar."""
    line = sparkline({41: 1_000_000, 75: 1}, 14, 111)
    assert len(line) == 14
    assert line.replace(" ", "") == "█▁"
    assert octaves({40: 5, 41: 7, 44: 1}, BOUNDS_S) == [
        (BOUNDS_S[36], BOUNDS_S[40], 5),
        (BOUNDS_S[40], BOUNDS_S[44], 8),
    ]
    assert octaves({0: 3}, BOUNDS_S) == [(0.0, BOUNDS_S[0], 3)]


def test_rows_stand_for_services_or_processes() -> None:
    """By service two processes of one executable are one line."""
    by_service = lines_of(report(ONE, TWO, THREE), Choice())
    assert {key[1:]: (line.count, line.time_s) for key, line in by_service.items()} == {
        ("postgres", "postgresql.service", "read"): (1510, 4.0),
        ("python3", "orders.py", "futex"): (20, 4.0),
    }
    by_process = lines_of(report(ONE, TWO, THREE), Choice("process", syscall="read"))
    assert sorted(key[0] for key in by_process) == [1, 2]


def test_what_happened_since_is_the_difference() -> None:
    """Lines without calls are left out; a PID that came back begins anew."""
    before = lines_of(report(ONE, THREE), Choice("process"))
    later = row(1, "postgres", "postgresql.service", "read", 3.5, ns_1000000=1400, ns_180000000=10)
    again = row(3, "python3", "orders.py", "futex", 0.5, ns_180000000=2)
    found = growth(lines_of(report(later, again), Choice("process")), before)
    assert {key[0]: (line.count, round(line.time_s, 3)) for key, line in found.items()} == {
        1: (400, 0.5),
        3: (2, 0.5),
    }
    assert growth(before, before) == {}


@pytest.mark.parametrize("width", [60, 80, 99, 100, 140])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    """Names give way; figures stay."""
    long = row(4, "x" * 64, "y" * 128 + ".service", "epoll_wait", 1.0, ns_1000000=10**9)
    for choice in (Choice(), Choice("process"), Choice(bars=True)):
        found = list(lines_of(report(ONE, long), choice).values())
        for each in found:
            each.time_s = 1_831.0  # "30m 31s" is the longest there is
        text = printed(syscalls.page(report(), found, choice, 900 * S_NS, width), width)
        if not choice.bars and width >= 80:
            assert len(text.splitlines()) == 3 + len(found), text
        assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_the_table_says_who_how_often_and_how_long() -> None:
    """One line, told in full."""
    found = list(lines_of(report(ONE, TWO), Choice()).values())
    text = printed(syscalls.page(report(), found, Choice(), 900 * S_NS, 120))
    assert "(1m 40s): 4.00s in 1,510 calls" in text
    line = text.splitlines()[2]
    assert re.match(r"postgresql/postgres +read +1\.51k +4\.00s +100% ", line)
    assert re.search(r"  1\.0\dms  1\.0\dms  1\.0\dms   210ms$", line.rstrip()), line


def test_nothing_that_matches_is_said_with_what_is_watched() -> None:
    """An empty page says why."""
    text = printed(syscalls.page(report(), [], Choice(), 900 * S_NS, 120))
    assert "Nothing that matches made one of these calls: read, futex." in text


def test_json_has_figures_and_buckets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One document a line."""
    monkeypatch.setattr(syscalls, "fetch_report", lambda *_: report(ONE, THREE))
    assert syscalls.run_syscalls(SETTINGS, Choice("process", limit=1), {}, as_json=True) == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert (found["pid"], found["syscall"], found["count"], found["time_s"]) == (3, "futex", 20, 4.0)


def test_watching_goes_on_with_differences_until_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first document is from the agent's start, the second from the first."""
    more = row(3, "python3", "orders.py", "futex", 4.5, ns_180000000=23)
    answers = iter([report(THREE), report(more, time_s=1_002)])

    def fetch(path: Path, name: str, words: Mapping[str, str]) -> dict[str, Any]:
        assert (path, name, dict(words)) == (SETTINGS.socket_path, "syscalls", {"pid": "3"})
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(syscalls, "fetch_report", fetch)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert syscalls.run_syscalls(SETTINGS, Choice("process"), {"pid": "3"}, as_json=True, watch_s=2) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["since_unix_ns"], first["rows"][0]["count"]) == (900 * S_NS, 20)
    assert (second["since_unix_ns"], second["rows"][0]["count"]) == (1_000 * S_NS, 3)


def thread(tid: int, what: str, kind: str = "stuck", **facts: Any) -> dict[str, Any]:
    return {
        "pid": 7,
        "tid": tid,
        "thread": f"worker-{tid}",
        "executable": "python3",
        "service": "orders.py",
        "syscall": "write",
        "since_unix_ns": 900 * S_NS,
        "for_s": 100.0,
        "on": "pipe",
        "what": what,
        "state": "S",
        "class": kind,
        **facts,
    }


def blocked_report(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "time_unix_ns": 1_000 * S_NS,
        "after_s": 10.0,
        "watched": [],
        "rows": list(rows),
        "left_out": {"idle": 3},
    }


def test_stuck_threads_come_first_and_pools_are_one_line() -> None:
    """Threads in the same call on the same thing stand together; idle ones only on request."""
    pool = [
        thread(n, f"futex {n:#x}, until it is woken", "idle", on="futex", syscall="futex")
        for n in range(20, 25)
    ]
    rows = blocked_report(
        thread(8, "pipe read by cat[9]"), thread(9, "pipe read by cat[9]", for_s=200.0), *pool
    )
    text = printed(blocked.page(rows, False, 100, 140), 140)
    assert "for more than 10 s at" in text
    assert "2 stuck, 0 waiting, 8 idle" in text
    assert re.search(r"3m 20s orders\.py/python3\[7\] +2 threads +write +pipe read by cat\[9\]", text)
    assert "worker-2" not in text
    assert "--all shows them" in text
    text = printed(blocked.page(rows, True, 100, 140), 140)
    assert re.search(r"orders\.py/python3\[7\] +5 threads +futex ", text)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_blocked_line_is_wider_than_the_screen(width: int) -> None:
    """What is waited for is cut at the end; where the screen is narrow it has a line of its own."""
    text = printed(blocked.page(blocked_report(thread(8, "x" * 300, state="D")), False, 100, width), width)
    assert len(text.splitlines()) == (4 if width >= 120 else 6)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "x" * min(60, width - 85 if width >= 120 else width - 18) in text


def test_hostile_names_reach_no_terminal() -> None:
    """Control characters of thread names and paths are neutralised here, too."""
    text = printed(blocked.page(blocked_report(thread(8, "/tmp/\x1b[31m", thread="a\nb")), False, 100, 120))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4
