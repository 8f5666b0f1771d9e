# SPDX-License-Identifier: Apache-2.0
"""features.scores: what kernel rows make of scores, series and reports; no kernel in it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from kernob.model import Drop, Event, Fate, Name, NameSource, Outcome, PeerClass, Resent, Severity
from kernob.state.network import NetworkFile, PeerRule
from tests.unit.records import flow_key
from tests.unit.score_fixture import (
    ANSWERED,
    CLIENT,
    ELSEWHERE,
    ESTABLISHED,
    OK,
    OTHER_PORT,
    REFUSED,
    SERVER,
    SYN_SENT,
    Fixture,
    connect,
    responses,
    silent,
    socks,
)


def test_reliability_is_the_share_of_attempts_that_connected() -> None:
    """Cancelled ones are neither; who connects to us is no dependency; each service has its own."""
    fixture = Fixture()
    fixture.tick(
        connect(CLIENT, OK, 6), connect(CLIENT, REFUSED, 2), connect(CLIENT, Outcome.CANCELLED, 9),
        connect(SERVER, OK, 50), connect(ELSEWHERE, OK, 5), connect(OTHER_PORT, OK, 4),
    )  # fmt: skip
    assert fixture.of() == {"reliability": 0.75, "composite": 0.75}
    assert fixture.of(service="s2") == {"reliability": 1.0, "composite": 1.0}
    assert fixture.of(port=80) == {}
    assert fixture.values("kernob.dependency.score") == {
        ("s1", "10.0.0.9", 443, "reliability"): 0.75,
        ("s1", "10.0.0.9", 443, "composite"): 0.75,
        ("s2", "10.0.0.9", 443, "reliability"): 1.0,
        ("s2", "10.0.0.9", 443, "composite"): 1.0,
    }
    # 6 + 5 + 4 of 17
    assert fixture.values("kernob.destination.score")["10.0.0.9", "reliability"] == pytest.approx(
        15 / 17, abs=1e-4
    )
    assert fixture.values("kernob.dependency.samples") == {
        ("s1", "10.0.0.9", 443, "reliability", "refused"): 8,
        ("s2", "10.0.0.9", 443, "reliability"): 5,
        ("s1", "10.0.0.9", 80, "reliability"): 4,
    }


def test_series_end_when_nothing_is_left_in_the_window() -> None:
    """After a window and a bucket: no score, no samples, no time of a failure."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, REFUSED, 5))
    assert fixture.of()["reliability"] == 0
    for _ in range(59):
        fixture.tick()
    assert fixture.of()["reliability"] == 0
    fixture.tick()
    fixture.tick()
    assert fixture.of() == {}
    names = ("score", "samples", "failing_now", "last_failure")
    assert [fixture.values(f"kernob.dependency.{name}") for name in names] == [{}] * 4


def test_attempts_that_still_wait_fail_now() -> None:
    """One SYN sent again: seen. Two: they count as failed, and once more only when they end."""
    fixture = Fixture()
    waiting = {"key": CLIENT, "state": SYN_SENT}
    fixture.tick(connect(CLIENT, OK, 5), live=socks(waiting, {**waiting, "syn_retransmits": 1}))
    assert fixture.of()["reliability"] == 1
    assert fixture.values("kernob.dependency.failing_now") == {("s1", "10.0.0.9", 443): 1}
    fixture.tick(live=socks(*[{**waiting, "syn_retransmits": 2}] * 5), step_s=1)
    assert fixture.of()["reliability"] == pytest.approx(0.5, abs=0.02)
    fixture.tick(connect(CLIENT, Outcome.TIMED_OUT, 5), step_s=1)
    assert fixture.of()["reliability"] == pytest.approx(0.5, abs=0.02)
    assert fixture.values("kernob.dependency.failing_now") == {("s1", "10.0.0.9", 443): 0}
    assert (
        fixture.values("kernob.dependency.samples")["s1", "10.0.0.9", 443, "reliability", "timed_out"] == 10
    )


def test_exchanges_are_counted_by_their_answers() -> None:
    """Of live sockets and of closed ones alike; what is dropped within its response was answered before."""
    fixture = Fixture()
    sock = {"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED}
    fixture.tick(live=socks({**sock, "answers": 9, "segments": 300}))
    assert fixture.of() == {"stability": 1.0, "responsiveness": 1.0, "composite": 1.0}
    fixture.tick((CLIENT, Fate.DROP, Drop.RESET_MID_RESPONSE, 0, 0, 1), step_s=1)
    assert fixture.of()["stability"] == pytest.approx(8 / 9, abs=0.01)
    fixture.tick((CLIENT, Fate.DROP, Drop.UNANSWERED, 0, 0, 1), step_s=1)
    assert fixture.of()["stability"] == pytest.approx(8 / 10, abs=0.01)
    fixture.tick(live=socks({**sock, "answers": 9, "segments": 600}), step_s=1)
    assert fixture.of()["packet_health"] == 1
    fixture.tick((CLIENT, Fate.RETRANSMIT, Resent.OTHER, 0, 0, 60), step_s=1)
    assert fixture.of()["packet_health"] == 1
    fixture.tick((CLIENT, Fate.RETRANSMIT, Resent.DATA, 0, 0, 60), step_s=1)
    assert fixture.of()["packet_health"] == 0


def test_an_exchange_is_silent_after_10_s_and_taken_back_when_answered() -> None:
    """Before that, and afterwards, it takes nothing off; at its end it counts once."""
    fixture = Fixture()
    answered = {"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED, "answers": 9}
    fixture.tick(live=socks(answered, silent(fixture, 9)), step_s=1)
    assert fixture.of()["responsiveness"] == 1
    fixture.tick(live=socks(answered, silent(fixture, 11)), step_s=1)
    assert fixture.of()["responsiveness"] == pytest.approx(0.9, abs=0.01)
    fixture.tick(live=socks(answered, {**answered, "answers": 1}), step_s=1)
    assert fixture.of()["responsiveness"] == 1
    fixture.tick((CLIENT, Fate.SILENCE, 0, 0, 0, 1), (CLIENT, Fate.WAIT, 0, 0, 0, 3), step_s=1)
    assert fixture.of()["responsiveness"] == pytest.approx(10 / 11, abs=0.01)
    assert fixture.values("kernob.wait.timeouts") == {("s1", "10.0.0.9", "p11"): 3}


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        ({}, True),
        ({"asked": 32, "answers": 1}, False),  # an acknowledgement
        ({"asked": 32, "flags": 4}, False),  # the same, on a connection that is older than we are
        ({"asked": 32}, True),  # a small first request
        ({"asked_ns": 1}, False),  # sends and sends, never heard anything
        ({"asked_ns": 1, "flags": 16}, True),
        ({"silent_waits": 0}, False),  # nobody waits
        ({"phase": ANSWERED}, False),
    ],
)
def test_what_counts_as_silent_while_it_lasts(other: dict[str, Any], counts: bool) -> None:
    """The rules of the kernel side, applied to what goes on."""
    fixture = Fixture()
    answered = {"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED, "answers": 9}
    fixture.tick(live=socks(answered, silent(fixture, 20, **other)), step_s=1)
    assert (fixture.of()["responsiveness"] < 1) == counts


POLLED = NetworkFile(long_polls=(PeerRule(PeerClass.UNKNOWN, ports=((443, 443),), hosts=("10.*",)),))
BY_ADDRESS = PeerRule(PeerClass.UNKNOWN, networks=(ipaddress.ip_network("10.0.0.0/8"),))


@pytest.mark.parametrize(
    "fixture",
    [
        Fixture(long_poll=("10.0.0.9",)),
        Fixture(NetworkFile(long_polls=(BY_ADDRESS,))),
    ],
)
def test_a_long_poll_is_never_silent(fixture: Fixture) -> None:
    """Where a setting or the network file says so: neither counted, nor blamed, nor looked for."""
    answered = {"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED, "answers": 9}
    fixture.tick(
        (CLIENT, Fate.SILENCE, 0, 0, 0, 9), (CLIENT, Fate.WAIT, 0, 0, 0, 30), connect(CLIENT, OK, 5),
        live=socks(answered, silent(fixture, 20)),
    )  # fmt: skip
    assert fixture.of() == {"reliability": 1.0, "stability": 1.0, "composite": 1.0}
    assert ("10.0.0.9", "responsiveness") not in fixture.values("kernob.destination.score")
    assert fixture.values("kernob.wait.timeouts") == {}
    (row,) = fixture.scores.reports()["scores"]({})["dependencies"]
    assert (row["reasons"], row["last_failure_unix_s"]) == ({}, None)


def test_a_long_poll_of_the_network_file_is_what_its_rule_matches() -> None:
    """A host pattern asks for a hostname, which an address has not; by network and port it does."""
    by_host = Fixture(POLLED)
    by_host.tick((CLIENT, Fate.SILENCE, 0, 0, 0, 9))
    assert by_host.of()["responsiveness"] == 0
    other = Fixture(NetworkFile(long_polls=(PeerRule(PeerClass.UNKNOWN, ports=((80, 80),)),)))
    other.tick((CLIENT, Fate.SILENCE, 0, 0, 0, 9), (OTHER_PORT, Fate.SILENCE, 0, 0, 0, 9))
    assert (other.of()["responsiveness"], other.of(80)) == (0, {})


def test_where_a_name_is_from_stands_beside_the_samples() -> None:
    """kernob.name.source: of the first flow under that name; a name's series does not change it."""
    fixture = Fixture()
    names = iter((Name("api.example", NameSource.GETADDRINFO), Name("api.example", NameSource.DNS), None))
    fixture.traffic.known.name_by(lambda _process, _there: next(names))
    for address in ("10.0.0.9", "10.0.0.8", "10.0.0.7"):
        fixture.tick(connect(flow_key(11, address, 443), OK, 5), step_s=1)
    assert fixture.values("kernob.dependency.samples", ()) == {
        ("s1", "api.example", 443, "reliability", "getaddrinfo"): 10,
        ("s1", "10.0.0.7", 443, "reliability", "ip"): 5,
    }


def test_latency_falls_against_what_was_usual() -> None:
    """100 samples make the baseline; ten times as long scores 0; back to usual it is 1 again."""
    fixture = Fixture()
    fixture.tick(measured=responses(99, 0.02))
    assert "latency" not in fixture.of()
    for _ in range(7):
        fixture.tick(measured=responses(20, 0.02))
    assert fixture.of()["latency"] == 1
    fixture.tick(measured=responses(40, 0.5))
    assert fixture.of()["latency"] == 0
    for _ in range(61):
        fixture.tick(measured=responses(20, 0.02))
    assert fixture.of()["latency"] == 1


def test_an_objective_stands_in_for_the_baseline() -> None:
    """At once, and also where usual is far slower."""
    fixture = Fixture(score_objectives=(("10.0.0.9", 0.010),))
    fixture.tick(measured=responses(20, 0.1))
    assert fixture.of()["latency"] == pytest.approx(0, abs=0.01)
    assert fixture.values("kernob.destination.score")["10.0.0.9", "latency"] == fixture.of()["latency"]


def test_beyond_the_cap_nothing_is_scored_and_it_is_counted() -> None:
    """Until a dependency has not been heard of for longer than a window."""
    fixture = Fixture(max_scores=1)
    fixture.tick(connect(CLIENT, OK, 5), connect(OTHER_PORT, OK, 5))
    assert [bool(fixture.of(port)) for port in (443, 80)] == [True, False]
    assert fixture.scores.folded == 1
    for _ in range(70):
        fixture.tick()
    fixture.traffic.known.sweep(fixture.now_s + 1000, lambda _process: None)
    fixture.tick()
    fixture.traffic.known.sweep(fixture.now_s + 1000, lambda _process: None)
    fixture.tick(connect(OTHER_PORT, OK, 5))
    assert fixture.of(80) == {"reliability": 1.0, "composite": 1.0}
    assert set(fixture.values("kernob.dependency.score")) == {
        ("s1", "10.0.0.9", 80, "reliability"), ("s1", "10.0.0.9", 80, "composite"),
    }  # fmt: skip


def test_what_found_no_room_is_scored_once_there_is_some() -> None:
    """A burst of destinations (a scan, a load test) fills the cap; what goes on is scored after it."""
    fixture = Fixture(max_scores=2)
    fixture.tick(connect(CLIENT, OK, 5), connect(ELSEWHERE, OK, 5), connect(OTHER_PORT, OK, 5))
    assert fixture.of(80) == {}
    for _ in range(63):  # the burst's are silent for a window, two buckets, and one until it is looked again
        assert fixture.scores.folded == 1
        fixture.tick(connect(OTHER_PORT, REFUSED, 5), connect(ELSEWHERE, OK, 5))
    assert fixture.of(80)["reliability"] == pytest.approx(0, abs=0.01)
    assert fixture.of(443, "s2")["reliability"] == 1
    assert fixture.of(443) == {}
    assert fixture.scores.folded == 1


def test_the_latest_failure_has_its_events_time() -> None:
    """To the microsecond; an event of another kind or destination changes nothing."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, REFUSED, 5))
    (before,) = fixture.values("kernob.dependency.last_failure").values()
    assert before == pytest.approx(fixture.unix_ns() / 1e9, abs=1e-4)
    at_ns = fixture.unix_ns() + 5_250_000_000
    event = Event(
        time_unix_ns=at_ns, kind="kernob.tcp.connect_failed", severity=Severity.WARN, service="s1", body="",
        executable="p11", pid=11, start_ticks=7, role="client", address="10.0.0.9", port=443, peer="",
        peer_port=443, local_port=1, reason="refused",
    )  # fmt: skip
    fixture.scores.saw([event])
    fixture.tick(connect(CLIENT, REFUSED, 1), step_s=1)
    fixture.scores.saw([event])
    (after,) = fixture.values("kernob.dependency.last_failure").values()
    assert after == pytest.approx(max(at_ns, fixture.unix_ns()) / 1e9, abs=1e-4)


def test_the_report_explains_the_sum() -> None:
    """Inputs, weights of those that have a score, and when the last failure is forgotten."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, OK, 9), connect(CLIENT, REFUSED, 1), connect(OTHER_PORT, OK, 5))
    fixture.tick(live=socks({"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED, "answers": 10}))
    reports = fixture.scores.reports()
    table = reports["scores"]({})
    assert [(d["port"], d["score"]["composite"]) for d in table["dependencies"]] == [(443, 0.952), (80, 1.0)]
    assert table["dependencies"][0]["reasons"] == {"refused": 1}
    (found,) = reports["score"]({"host": "10.0.0.9:443"})["dependencies"]
    lines = {line["name"]: line for line in found["dimensions"]}
    assert (lines["reliability"]["total"], lines["reliability"]["bad"]) == (10, 1)
    assert lines["reliability"]["share"] == round(0.35 / 0.75, 4)
    assert lines["latency"] == lines["latency"] | {"score": None, "share": 0.0}
    # noted in the bucket of 1010 s; now it is 1020 s
    assert lines["reliability"]["clear_in_s"] == 590
    assert found["score"]["composite"] == pytest.approx(0.9 ** (0.35 / 0.75), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("score", {"host": "10.0.0.8"}, "did you mean 10.0.0.9?"),
        ("score", {}, "takes one word"),
        ("scores", {"host": "x"}, "takes no words"),
    ],
)
def test_questions_that_make_no_sense_are_refused(name: str, words: dict[str, str], said: str) -> None:
    """In one line."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, OK, 5))
    with pytest.raises(ValueError, match=said):
        fixture.scores.reports()[name](words)


def test_switched_off_there_is_nothing() -> None:
    """No series, and a report says why."""
    fixture = Fixture(scores=False)
    fixture.tick(connect(CLIENT, OK, 5))
    assert fixture.values("kernob.dependency.score") == {}
    with pytest.raises(ValueError, match="KERNOB_SCORES"):
        fixture.scores.reports()["scores"]({})
