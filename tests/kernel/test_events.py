# SPDX-License-Identifier: Apache-2.0
"""Events end to end: real faults on a real kernel, in `kernob events`, in the store, as OTLP log records."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PROGRAM, ROOT, Agent, environment, running_agent, wait_until, workload_command

MILLISECOND_NS = 1_000_000
Event = dict[str, Any]


def make_faults() -> dict[str, dict[str, Any]]:
    """Run the workload; what it knows of each fault."""
    done = subprocess.run(
        ["unshare", "--net", *workload_command("faults")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {fault["name"]: fault for fault in map(json.loads, done.stdout.splitlines())}


def kernob_events(directory: Path, *arguments: str) -> list[Event]:
    """What `kernob events --json` prints, of the agent in `directory`."""
    paths = {"socket": directory / "run" / "agent.sock", "state_dir": directory / "state"}
    done = subprocess.run(
        [*PROGRAM, "events", "--json", "--since", "1h", *arguments],
        cwd=ROOT, env=environment(**paths), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(events: list[Event], fault: dict[str, Any], kind: str, pid: int | None = None) -> list[Event]:
    """The events of that kind on the fault's port that belong to its process (or to `pid`)."""
    pid = pid or fault["pid"]
    return [
        event
        for event in events
        if event["kind"] == f"kernob.tcp.{kind}" and event["pid"] == pid and event["port"] == fault["port"]
    ]


def in_time(event: Event, fault: dict[str, Any]) -> bool:
    """Whether the event's time is the fault's, within a millisecond."""
    earliest, latest = fault["before_ns"] - MILLISECOND_NS, fault["after_ns"] + MILLISECOND_NS
    return bool(earliest <= event["time_unix_ns"] <= latest)


@pytest.fixture(scope="module")
def story(agents: Path) -> Iterator[tuple[dict[str, dict[str, Any]], list[Event], Agent]]:
    """Faults beside a running agent, and what it says of them: while it runs."""
    directory = agents / "events"
    with running_agent(directory) as agent:
        faults = make_faults()
        agent.wait_exports(2)
        yield faults, kernob_events(directory), agent


Story = tuple[dict[str, dict[str, Any]], list[Event], Agent]


@pytest.mark.lane
def test_a_refused_connect(story: Story) -> None:
    """One event, at its time, with process, destination and reason."""
    faults, events, _ = story
    fault = faults["refused"]
    (event,) = of(events, fault, "connect_failed")
    assert in_time(event, fault)
    assert (event["reason"], event["address"], event["role"]) == ("refused", "127.0.0.1", "client")
    assert f"PID {fault['pid']}) was refused by 127.0.0.1:{fault['port']}" in event["body"]
    assert 0 <= event["age_s"] < 1


@pytest.mark.lane
def test_an_idle_reset_belongs_to_both_ends(story: Story) -> None:
    """The client's process received it, the server's sent it; idle for as long as it was."""
    faults, events, _ = story
    fault = faults["idle reset"]
    (received,) = of(events, fault, "reset")
    assert in_time(received, fault)
    assert (received["direction"], received["idle"], received["role"]) == ("receive", True, "client")
    assert fault["pause_s"] - 0.02 < received["gap_s"] < fault["pause_s"] + 1
    assert "the peer reset it after" in received["body"]
    assert (received["tx_bytes"], received["rx_bytes"]) == (len(b"question"), len(b"answer"))
    (sent,) = of(events, fault, "reset", fault["server"])
    assert in_time(sent, fault)
    assert (sent["direction"], sent["role"]) == ("transmit", "server")
    assert not of(events, fault, "drop")


@pytest.mark.lane
def test_the_latest_time_of_a_kind_is_a_metric(story: Story) -> None:
    """kernob.event.last_time is the time of the last such event, to the microsecond."""
    _, events, agent = story
    service = next(e["service"] for e in events if e["service"].startswith("faults"))
    latest = max(
        e["time_unix_ns"] for e in events if (e["service"], e["kind"]) == (service, "kernob.tcp.reset")
    )
    told = [
        point["asDouble"]
        for line in agent.otlp.read_text().splitlines()
        for resource in json.loads(line).get("resourceMetrics", [])
        for metric in resource["scopeMetrics"][0]["metrics"]
        if metric["name"] == "kernob.event.last_time"
        for point in metric["gauge"]["dataPoints"]
        if {a["value"].get("stringValue") for a in point["attributes"]} >= {service, "kernob.tcp.reset"}
    ]
    assert abs(told[-1] - latest / 1e9) < 2e-6


@pytest.mark.lane
def test_a_request_without_answer_is_a_drop(story: Story) -> None:
    """The server aborts instead of answering: a drop by the peer, and a reset that was not idle."""
    faults, events, _ = story
    fault = faults["unanswered"]
    (drop,) = of(events, fault, "drop")
    assert in_time(drop, fault)
    assert (drop["reason"], drop["closed_by"], drop["severity"]) == ("unanswered", "peer", "error")
    (reset,) = of(events, fault, "reset")
    assert (reset["idle"], reset["direction"]) == (False, "receive")


@pytest.mark.lane
def test_retransmits_are_one_event_per_connection_and_second(story: Story) -> None:
    """Their counts add up to what the socket itself says; at most one event for each second."""
    faults, events, _ = story
    if "retransmitted" not in faults:
        pytest.skip("missing feature: nft")
    fault = faults["retransmitted"]
    found = of(events, fault, "retransmit")
    assert sum(event["count"] for event in found) == fault["segments"] >= 2
    seconds = (fault["after_ns"] - fault["before_ns"]) / 1e9
    assert 1 <= len(found) <= seconds + 2
    assert all(in_time(event, fault) for event in found)


def test_the_store_has_the_same_after_the_agent_was_killed(agents: Path) -> None:
    """What ticks had committed is there after kill -9; `kernob events` reads it without an agent."""
    directory = agents / "events-killed"
    with running_agent(directory) as agent:
        faults = make_faults()
        agent.wait_exports(2)
        live = kernob_events(directory)
        with contextlib.suppress(ProcessLookupError):
            agent.process.kill()
        agent.process.wait()
        stored = kernob_events(directory)
        assert [e for e in stored if e["pid"] == faults["refused"]["pid"]] == [
            e for e in live if e["pid"] == faults["refused"]["pid"]
        ]
        assert of(stored, faults["idle reset"], "reset")
        with contextlib.closing(sqlite3.connect(directory / "state" / "kernob.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_they_arrive_as_log_records(agents: Path) -> None:
    """A real OTLP receiver gets each of them, with the kernel's time and the same sentence."""
    from tests.unit.receivers import HttpReceiver, records_in

    directory = agents / "events-logs"
    with HttpReceiver() as receiver:
        endpoint = f"http://127.0.0.1:{receiver.port}"
        with running_agent(
            directory, OTEL_LOGS_EXPORTER="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, scrape_interval=30
        ):
            faults = make_faults()
            fault = faults["idle reset"]

            def arrived() -> list[Any]:
                found = records_in(list(receiver.inbox.logs))
                return [record for record in found if f"PID {fault['pid']})" in record.body.string_value]

            # without waiting for a tick, which is half a minute away
            wait_until(lambda: len(arrived()) >= 4, "log records", limit_s=20)
            live = kernob_events(directory)
        records = arrived()
    mine = [event for event in live if event["pid"] == fault["pid"]]
    # the store's are in the order of time; those that came here in that of their reading, from two processors
    assert sorted((r.time_unix_nano, r.event_name, r.body.string_value) for r in records) == sorted(
        (event["time_unix_ns"], event["kind"], event["body"]) for event in mine
    )
    assert all(0 <= r.observed_time_unix_nano - r.time_unix_nano < 10**10 for r in records)


def test_a_storm_is_told_in_a_few_events_and_one_summary(agents: Path) -> None:
    """2,003 refusals of one process: at most so many a second by themselves, the rest counted exactly."""
    script = (
        "import socket\n"
        "for _ in range(2003):\n"
        "    s = socket.socket()\n"
        "    try: s.connect(('127.0.0.1', 1))\n"
        "    except ConnectionRefusedError: pass\n"
        "    s.close()\n"
    )
    directory = agents / "events-storm"
    with running_agent(directory, max_events_per_second=7) as agent:
        program = directory / "stormy.py"
        program.write_text(script)
        began = time.time()
        subprocess.run(["python3", str(program)], check=True)
        seconds = time.time() - began
        agent.wait_exports(3)
        events = [e for e in kernob_events(directory) if e["service"] == "stormy.py" and "tcp" in e["kind"]]
    told = [event for event in events if not event["suppressed"]]
    suppressed = sum(event["suppressed"] for event in events)
    assert len(told) + suppressed == 2003
    assert 7 <= len(told) <= 7 * (seconds + 2)
    assert all(event["kind"] == "kernob.tcp.connect_failed" for event in events)
    assert agent.totals().sum_of("kernob.events.suppressed") >= suppressed
    lost = {a["kernob.cause"]: count for a, count in agent.totals().series("kernob.lost")}
    assert [lost[cause] for cause in ("ring_full", "decode", "event_export", "event_store")] == [0] * 4
