# SPDX-License-Identifier: Apache-2.0
"""The dashboards show what was moved, in both Grafanas' own code; no query of any panel fails or is empty."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from grafana import check

from . import dashboards
from .compose import Stack, progress, wait_for
from .load import container_workload, host_workload
from .wan import INTERFACE, THERE, send_here, wan

MEGABYTE = 1_000_000
STEP_S, RATE_WINDOW_S = 30, 120
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


@dataclass(frozen=True)
class Shown:
    """A stack with traffic in it, and Unix times.

    They are: before the first byte, after the last one of CLIENTS, when every query had found something.
    """

    stack: Stack
    began_s: float
    sent_s: float
    complete_s: float


@pytest.fixture(scope="module")
def shown(images: float) -> Iterator[Shown]:
    """A stack of its own: two containers send what CLIENTS says, and somebody else owns the interface."""
    settings = {"KERNOB_INTERFACES": INTERFACE, "KERNOB_BPF_STATS": "true"}
    stack = Stack("kernob-ci-shown", ("tests/stack/fast.yaml",), settings)
    with wan() as (there, here):
        try:
            stack.down(volumes=True)
            began_s = time.time()
            stack.up()
            for name, size in CLIENTS.items():
                container_workload(name, "once", there.address, there.port, size, network="host")
            sent_s = time.time()

            def everything_shows() -> bool:
                # an owner is one only while it moves something
                host_workload("once", there.address, there.port, 30 * MEGABYTE)
                send_here(here, 20 * MEGABYTE)
                stack.victoria.flush()
                found = check.run(stack.victoria.url, check.Range(began_s, time.time()))
                return not dashboards.query_problems(found)

            _wait(stack, everything_shows, began_s)
            yield Shown(stack, began_s, sent_s, time.time())
        finally:
            stack.down(volumes=True)


def _wait(stack: Stack, everything_shows: Callable[[], bool], began_s: float) -> None:
    """Until then; else fail with what does not show."""
    try:
        wait_for(everything_shows, "all panels to show something", 300, 3)
    except TimeoutError:
        found = check.run(stack.victoria.url, check.Range(began_s, time.time()))
        pytest.fail("\n".join(dashboards.query_problems(found)), pytrace=False)
    progress(f"every query of every dashboard found something {time.time() - began_s:.0f} s after `up` began")


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


def _of(runs: list[check.Run], title: str, ref: str) -> tuple[Any, ...]:
    (found,) = [
        each for each in runs if (each.dashboard, each.place, each.ref) == ("kernob-bandwidth", title, ref)
    ]
    assert not found.error
    return found.result
