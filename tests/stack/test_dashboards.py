# SPDX-License-Identifier: Apache-2.0
"""The dashboards show what was moved, in both Grafanas' own code; no query of any panel fails or is empty."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compose.victoria import COUNTERS
from grafana import check

from . import dashboards
from .compose import Stack, progress, wait_for
from .conftest import ROOMY
from .load import WORKLOADS, container_workload, host_workload
from .wan import INTERFACE, MISHAPS, THERE, dark, mishaps, send_here, wan

MEGABYTE = 1_000_000
STEP_S, RATE_WINDOW_S = 30, 120
SLOWEST = 12
SHOWN_LIMIT_S = 240
"""The aim is a minute on a quiet machine; what is not there by now will not come."""
CLIENTS = {"kernob-ci-shown-a": 7 * MEGABYTE, "kernob-ci-shown-b": 40 * MEGABYTE}


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """Grafana's packages, installed from the lock file."""
    if reason := dashboards.missing():
        pytest.skip(reason)
    dashboards.install()


@pytest.fixture(scope="module")
def boards() -> dict[str, dict[str, Any]]:
    """The checked-in dashboards."""
    return check.load()


# ---- against the published types -------------------------------------------------------------------


def test_both_releases_know_every_option(boards: dict[str, dict[str, Any]]) -> None:
    """Nothing in the dashboards is unknown to the types of Grafana 9.4 or of the current release."""
    assert dashboards.schema_problems(boards.values()) == []


def test_what_a_release_does_not_know_is_found(boards: dict[str, dict[str, Any]]) -> None:
    """The check above does fail: a misspelt value in both releases, what came after 9.4 in that one."""
    board = copy.deepcopy(boards["kernob-bandwidth"])
    curves = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    curves["options"]["legend"]["displayMode"] = "tabel"
    curves["fieldConfig"]["defaults"]["color"]["mode"] = "palette-classic-by-name"
    problems = dashboards.schema_problems([board])
    for release, word in (("9", "tabel"), ("13", "tabel"), ("9", "palette-classic-by-name")):
        assert [p for p in problems if p.startswith(f"Grafana {release}:") and word in p]
    assert len(problems) == 3


# ---- against data ----------------------------------------------------------------------------------


class Neighbour:
    """workloads/neighbour.py: 8 MB/s to the disk, 2 descriptors a second."""

    def __init__(self, directory: Path) -> None:
        script, file = WORKLOADS / "neighbour.py", directory / "noise"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(file), str(4 * MEGABYTE), "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.pid = str(json.loads(self.process.stdout.readline())["pid"])
        self._noted = (0.0, 0)

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def note(self) -> None:
        """From here on `gained_an_hour` counts."""
        self._noted = (time.time(), self.descriptors())

    def gained_an_hour(self) -> float:
        """Its true pace, which is the disk's: 7,200 where that is quick."""
        since_s, before = self._noted
        return (self.descriptors() - before) / (time.time() - since_s) * 3600

    def end(self) -> None:
        """Stop it."""
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def stuck_and_waiting() -> Iterator[None]:
    """A writer whose reader sleeps, and a reader whose writer does; without a terminal, as daemons."""
    lines = ("cat /dev/zero | sleep 3600", "sleep 3600 | cat")
    shells = [subprocess.Popen(["/bin/sh", "-c", line], start_new_session=True) for line in lines]
    try:
        yield
    finally:
        for shell in shells:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def failures() -> None:
    """A process that ends with an exit code, and one that a signal kills."""
    for line in ("exit 3", "kill -ABRT $$"):
        subprocess.run(["/bin/sh", "-c", line], check=False)


@dataclass(frozen=True)
class Shown:
    """A stack with traffic in it, and Unix times.

    They are: before the first byte, after the last one of CLIENTS, when every query had found something.
    """

    stack: Stack
    neighbour: Neighbour
    began_s: float
    sent_s: float
    complete_s: float


@pytest.fixture(scope="module")
def shown(images: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A stack of its own: two containers send what CLIENTS says, others own the interface and the disk."""
    settings = {**ROOMY, "KERNOB_INTERFACES": INTERFACE, "KERNOB_BPF_STATS": "true"}
    stack = Stack("kernob-ci-shown", ("tests/stack/fast.yaml",), settings)
    with wan() as (there, here), stuck_and_waiting(), contextlib.ExitStack() as stuck:
        neighbour = Neighbour(tmp_path_factory.mktemp("disk"))
        try:
            stack.down(volumes=True)
            began_s = time.time()
            stack.up()
            neighbour.note()
            for name, size in CLIENTS.items():
                container_workload(name, "once", there.address, there.port, size, network="host")
            sent_s = time.time()

            mishaps()
            stuck.enter_context(dark())
            empty: dict[str, float] = {}

            def everything_shows() -> bool:
                # an owner is one only while it moves something
                host_workload("once", there.address, there.port, 30 * MEGABYTE)
                send_here(here, 20 * MEGABYTE)
                failures()
                stack.victoria.flush()
                found = check.run(stack.victoria.url, check.Range(began_s, time.time()))
                problems = dashboards.query_problems(found)
                empty.update({problem.partition(" (")[0]: time.time() - began_s for problem in problems})
                return not problems

            _wait(everything_shows, began_s)
            for place, when_s in sorted(empty.items(), key=lambda item: -item[1])[:SLOWEST]:
                progress(f"{place}: empty {when_s:.0f} s after `up` began")
            yield Shown(stack, neighbour, began_s, sent_s, time.time())
        finally:
            neighbour.end()
            stack.down(volumes=True)


def _wait(everything_shows: Callable[[], bool], began_s: float) -> None:
    """Until then; what does not show in time is named by the tests, which need not all of it."""
    try:
        wait_for(everything_shows, "all panels to show something", SHOWN_LIMIT_S, 3)
    except TimeoutError as error:
        progress(f"{error}; now the tests look at what there is")
    else:
        took_s = time.time() - began_s
        progress(f"every query of every dashboard found something {took_s:.0f} s after `up` began")


@pytest.fixture(scope="module")
def runs(shown: Shown, boards: dict[str, dict[str, Any]]) -> list[check.Run]:
    """Every query's answer."""
    return check.run(shown.stack.victoria.url, check.Range(shown.began_s, time.time()), boards=boards)


def test_no_query_fails_or_is_empty(runs: list[check.Run]) -> None:
    """Every panel, variable and annotation of every dashboard finds something."""
    assert dashboards.query_problems(runs) == []


def test_grafana_shows_what_the_panels_ask_for(
    runs: list[check.Run], boards: dict[str, dict[str, Any]]
) -> None:
    """Columns, names, overrides, units and colours are there after both releases' own transformations."""
    assert dashboards.frame_problems(boards, runs) == []


def test_an_override_that_matches_nothing_is_found(
    runs: list[check.Run], boards: dict[str, dict[str, Any]]
) -> None:
    """The check above does fail."""
    wrong = copy.deepcopy(boards)
    panel = next(p for p in wrong["kernob-bandwidth"]["panels"] if p["title"] == "Processes and destinations")
    panel["fieldConfig"]["overrides"][0]["matcher"]["options"] = "Servus"
    panel["transformations"][-1]["options"]["renameByName"].pop("Value #D")
    for release in dashboards.RELEASES:
        found = [each for each in dashboards.frames(release, wrong, runs) if each["problems"]]
        assert [each["title"] for each in found] == ["Processes and destinations"]
        assert 'override of "Servus" matches no field' in found[0]["problems"]
        assert "column Value #D was not asked for" in found[0]["problems"]


def test_the_table_s_totals_are_exact(shown: Shown) -> None:
    """Sent of the table is the bytes that were moved, by process and destination."""
    now = check.Range(shown.began_s, time.time())
    for name, size in CLIENTS.items():
        found = check.run(shown.stack.victoria.url, now, {"service": [name]})
        (row,) = _of(found, "Processes and destinations", "C")
        assert row["metric"]["server_address"] == THERE
        assert float(row["value"][1]) == size


def test_the_area_under_a_curve_is_what_was_moved(shown: Shown) -> None:
    """By service, process and destination: rate times step, summed over the panel, is each byte once."""
    end_s = shown.sent_s + RATE_WINDOW_S + STEP_S
    while time.time() < end_s + 5:  # VictoriaMetrics repeats the last point for times not yet over
        time.sleep(1)
    for name, size in CLIENTS.items():
        past = check.Range(shown.began_s - STEP_S, end_s)
        found = check.run(shown.stack.victoria.url, past, {"service": [name]})
        for title in ("By service: sent", "By process: sent", "By destination: sent"):
            curves = _of(found, title, "A")
            area = sum(float(value) * STEP_S for curve in curves for _, value in curve["values"])
            assert area == pytest.approx(size, rel=1e-9), title


def test_a_chosen_destination_leaves_the_others_out(shown: Shown) -> None:
    """Variables with several values, and with one that is no regular expression, filter as they should."""
    now, url = check.Range(shown.began_s, time.time()), shown.stack.victoria.url
    chosen = {"service": list(CLIENTS), "destination": [THERE]}
    both = _of(check.run(url, now, chosen), "Processes and destinations", "C")
    assert sorted(float(row["value"][1]) for row in both) == sorted(CLIENTS.values())
    nothing = check.run(url, now, {**chosen, "destination": ["10.(97.40.2"]})
    assert _of(nothing, "Processes and destinations", "C") == ()


def test_the_owner_is_who_sends_most_and_since_then(shown: Shown, runs: list[check.Run]) -> None:
    """The process that sends to the interface again and again, and a time after the stack's start."""
    names = {row["metric"]["kernob_service"] for row in _of(runs, "Owner now", "A")}
    assert "senders.py" in names
    for row in _of(runs, "Owner now", "B"):
        assert shown.began_s < float(row["value"][1]) / 1000 < shown.complete_s
    for direction in ("transmit", "receive"):
        marks = _of(runs, f"Owner of {direction}", "")
        assert all(float(v) / 1000 > shown.began_s for mark in marks for _, v in mark["values"])


def test_the_host_s_dashboard_names_the_disk_s_owner_and_the_leak(shown: Shown) -> None:
    """A process that writes 8 MB/s and keeps 2 more descriptors a second stands where one would look."""
    now = check.Range(shown.began_s, time.time())
    found = check.run(shown.stack.victoria.url, now)
    pid = shown.neighbour.pid
    descriptors, pace = shown.neighbour.descriptors(), shown.neighbour.gained_an_hour()

    def figure(title: str, ref: str) -> float:
        (row,) = [r for r in _of(found, title, ref, "kernob-host") if r["metric"].get("process_pid") == pid]
        return float(row["value"][1] if "value" in row else row["values"][-1][1])

    assert 1 * MEGABYTE < figure("Who uses the disks: write", "A") < 12 * MEGABYTE
    assert figure("Bytes from and to disks in this range", "B") > 50 * MEGABYTE
    assert 0.5 * descriptors < figure("Open descriptors", "A") <= descriptors
    assert 0.3 * descriptors < figure("Descriptors gained in this range", "B") < descriptors
    assert 0.3 * pace < figure("Descriptors gained in this range", "C") < 1.7 * pace


def test_the_host_s_figures_are_the_machine_s(shown: Shown) -> None:
    """Memory, file system and processors as this process reads them itself."""
    runs = check.run(shown.stack.victoria.url, check.Range(shown.began_s, time.time()))

    def figure(title: str) -> float:
        (row,) = _of(runs, title, "A", "kernob-host")
        return float(row["value"][1])

    whole, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    assert 0 < figure("Memory used") < 1 - free / whole + 0.1
    disk = os.statvfs("/")
    used = (disk.f_blocks - disk.f_bfree) / (disk.f_blocks - disk.f_bfree + disk.f_bavail)
    assert figure("Fullest file system") >= used - 0.02
    assert 0 < figure("Processor busy") <= 1
    assert figure("Load per processor") == pytest.approx(os.getloadavg()[1] / (os.cpu_count() or 1), rel=0.5)


def test_kernob_s_own_figures(shown: Shown, runs: list[check.Run]) -> None:
    """One agent, all its hooks attached, nothing lost, every series that there is."""

    def figure(title: str) -> float:
        (row,) = _of(runs, title, "A", "kernob-self")
        return float(row["value"][1])

    assert figure("Agents") == 1
    assert figure("Oldest data") < 30
    assert figure("Hooks not attached") == 0
    assert figure("Lost in this range") == 0
    hooks = _of(runs, "Hooks", "A", "kernob-self")
    assert {row["metric"]["error_type"] for row in hooks} == {"-"}
    assert {row["metric"]["kernob_hook"] for row in hooks} >= {"send", "receive", "destroy"}
    series = {row["metric"]["__name__"] for row in _of(runs, "Series", "A", "kernob-self")}
    assert series == set(COUNTERS)
    for row in _of(runs, "Map fill", "A", "kernob-self"):
        assert all(0 <= float(value) < 1 for _, value in row["values"])


def test_what_went_wrong_stands_in_the_tables_of_tcp_health(shown: Shown) -> None:
    """Of the process whose connections failed in known ways, each figure by process and destination."""
    now, chosen = check.Range(shown.began_s, time.time()), {"service": [MISHAPS]}
    found = check.run(shown.stack.victoria.url, now, chosen)
    known = {"B": 1, "C": 2, "D": 4}  # failed, dropped, RSTs (two connections, both ends); E: sent again
    for title in ("Destinations", "Processes"):
        tables = {ref: _of(found, title, ref, "kernob-tcp") for ref in (*known, "E")}
        sums = {ref: sum(float(row["value"][1]) for row in rows) for ref, rows in tables.items()}
        assert sums.pop("E") >= 1, title
        assert sums == known, title
    (stalls,) = _of(found, "Stalls and timeouts", "A", "kernob-tcp")
    (timeouts,) = _of(found, "Stalls and timeouts", "B", "kernob-tcp")
    assert timeouts["metric"]["error_type"] == "unacknowledged"
    assert any(float(value) > 0 for _, value in stalls["values"])


def _of(runs: list[check.Run], title: str, ref: str, uid: str = "kernob-bandwidth") -> tuple[Any, ...]:
    (found,) = [each for each in runs if (each.dashboard, each.place, each.ref) == (uid, title, ref)]
    assert not found.error
    return found.result
