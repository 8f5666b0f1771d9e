# SPDX-License-Identifier: Apache-2.0
"""features.scores: what kernel rows make of scores, series and reports; no kernel in it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.feature import Tick
from kernob.features.scores import Scores
from kernob.features.tcp import Tcp
from kernob.kernel.session import Session
from kernob.model import Drop, Event, Fate, Outcome, ProcessInfo, ProcessKey, Resent, Role, Severity
from kernob.probes import traffic
from kernob.probes.tcp import TcpRows
from kernob.probes.traffic import TrafficRows
from kernob.state.score_memory import Memory, dump, load, unpacked
from kernob.state.series import SeriesStore
from kernob.state.traffic import Caps, TrafficState
from tests.unit.records import DURATION_KEY, DURATION_VAL, SOCK_VAL, closed, durations, fates, flow_key
from tests.unit.series_points import points_of

AT_NS = 1_700_000_000_000_000_000
NOTHING = (np.zeros(0, DURATION_KEY), np.zeros(0, DURATION_VAL))
CLIENT = flow_key(11, "10.0.0.9", 443)
OTHER_PORT = flow_key(11, "10.0.0.9", 80)
ELSEWHERE = flow_key(21, "10.0.0.9", 443)
SERVER = flow_key(11, "192.0.2.7", 8080, role=Role.SERVER, local="10.0.0.1")
OK, REFUSED = Outcome.OK, Outcome.REFUSED
SYN_SENT, ESTABLISHED = 2, 1
ASKED, ANSWERED = 1, 2


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """Process N is program pN of service s(N // 10)."""
    return ProcessInfo(key, f"p{key.pid}", "comm", service=f"s{key.pid // 10}")


def socks(*rows: dict[str, Any]) -> NDArray[Any]:
    """A reading of the socks map; each row by the fields that are not 0."""
    made = np.zeros(len(rows), SOCK_VAL)
    for row, fields in zip(made, rows, strict=True):
        for name, value in fields.items():
            row[name] = np.frombuffer(value, made.dtype["key"])[0] if name == "key" else value
    return made


class FakeTcp:
    """What a tick read of connections."""

    read: TcpRows | None = None


class Fixture:
    """The feature over a traffic state, ticked as the pipeline does it: every 10 s from 1000 s on."""

    def __init__(self, **settings: Any) -> None:
        self.store = SeriesStore()
        self.traffic = TrafficState(self.store, traffic.SPECS, Caps(100, 100, 100), resolve)
        self.tcp = FakeTcp()
        self.scores = Scores(Settings(**settings), self.store, self.traffic.known, cast("Tcp", self.tcp))
        self.now_s = 1000.0

    def tick(
        self,
        *facts: tuple[bytes, int, int, int, int, int],
        measured: tuple[NDArray[Any], NDArray[Any]] = NOTHING,
        live: NDArray[Any] | None = None,
        step_s: float = 10.0,
    ) -> None:
        """One tick with these facts, durations and live sockets."""
        rows = socks() if live is None else live
        self.now_s += step_s
        growth = self.traffic.update((*closed(), rows), AT_NS, self.now_s)
        self.tcp.read = TcpRows(*fates(*facts), *measured)
        read = TrafficRows(*closed(), rows, np.zeros(0), rows)
        self.scores.tick(Tick(cast("Session", None), read, growth, self.now_s, self.unix_ns(), AT_NS, None))

    def unix_ns(self) -> int:
        """The wall clock, which began with the first tick."""
        return AT_NS + int((self.now_s - 1000) * 1e9)

    def values(self, name: str) -> dict[tuple[Any, ...], float]:
        """Last value of each living series of a metric, by the values of its attributes."""
        found: dict[tuple[Any, ...], float] = {}
        for point in points_of(self.store.batch(AT_NS + 10**13, everything=True), name):
            said = tuple(getattr(kv.value, str(kv.value.WhichOneof("value"))) for kv in point.attributes)
            if point.flags & 1:  # no recorded value
                found.pop(said, None)
            else:
                found[said] = point.as_int if point.HasField("as_int") else point.as_double
        return found

    def of(self, port: int = 443, service: str = "s1") -> dict[str, float]:
        """A dependency's score by dimension."""
        return self.scores.score(service, "10.0.0.9", port)


def connect(key: bytes, outcome: Outcome, count: int) -> tuple[bytes, int, int, int, int, int]:
    """Attempts that came to an end."""
    return key, Fate.CONNECTION, outcome, 0, 0, count


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


def silent(fixture: Fixture, since_s: float, **other: Any) -> dict[str, Any]:
    """A socket that asked so long ago, on which a wait ran out."""
    asked_ns = int((fixture.now_s + 1 - since_s) * 1e9)
    return {
        "key": CLIENT, "state": ESTABLISHED, "phase": ASKED, "silent_waits": 1, "asked": 100,
        "asked_ns": asked_ns, "sent_ns": asked_ns, **other,
    }  # fmt: skip


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
        ({"asked": 32, "older": 1}, False),  # the same, on a connection that is older than we are
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


def test_a_long_poll_is_never_silent() -> None:
    """Where the user says so; everything else is scored as ever."""
    fixture = Fixture(long_poll=("10.0.0.9",))
    fixture.tick((CLIENT, Fate.SILENCE, 0, 0, 0, 9), connect(CLIENT, OK, 5))
    assert fixture.of() == {"reliability": 1.0, "composite": 1.0}
    assert ("10.0.0.9", "responsiveness") not in fixture.values("kernob.destination.score")


def responses(count: int, seconds: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Durations of one length."""
    return durations((CLIENT, 1, [int(seconds * 1e9)] * count), (SERVER, 1, [10**9] * 50))


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


def happened(fixture: Fixture) -> None:
    """Something of every kind."""
    fixture.tick(measured=responses(150, 0.02))
    fixture.tick(connect(CLIENT, OK, 6), connect(CLIENT, REFUSED, 2), connect(OTHER_PORT, OK, 9))
    sock = {"key": CLIENT, "state": ESTABLISHED, "phase": ANSWERED, "answers": 9, "segments": 900}
    fixture.tick(
        (CLIENT, Fate.RETRANSMIT, Resent.DATA, 0, 0, 9), (CLIENT, Fate.DROP, Drop.UNANSWERED, 0, 0, 1),
        live=socks(sock), measured=responses(50, 0.1),
    )  # fmt: skip
    for _ in range(6):  # until every baseline was looked at
        fixture.tick(step_s=1.0)


def reborn(before: Fixture, away_s: float, **settings: Any) -> Fixture:
    """Another life, so much later, with what the one before kept."""
    packed = dump(before.scores.dependencies, before.unix_ns()).packed()
    after = Fixture(**settings)
    after.now_s = before.now_s + 5000  # another clock
    now_ns = before.unix_ns() + int(away_s * 1e9)
    load(after.scores.dependencies, unpacked(packed, before.unix_ns()), after.now_s, now_ns)
    after.tick(step_s=0.0)
    return after


def test_a_restart_forgets_nothing() -> None:
    """Scores, samples, reasons and baselines are what they were; what went on ages meanwhile."""
    before = Fixture()
    happened(before)
    at_once = reborn(before, 0)
    assert at_once.of() == pytest.approx(before.of(), abs=1e-6)
    assert at_once.of(80) == before.of(80)
    samples = "kernob.dependency.samples"
    assert at_once.values(samples) == before.values(samples)
    for _ in range(30):
        before.tick()
    assert reborn(before, 0).of() == pytest.approx(before.of(), abs=1e-6)
    later = Fixture()
    happened(later)
    assert reborn(later, 300).of() == pytest.approx(before.of(), abs=0.02)


def test_what_is_older_than_the_window_is_forgotten_but_what_is_usual_is_not() -> None:
    """After ten minutes away, or with another window, only baselines are left."""
    before = Fixture()
    happened(before)
    for after in (reborn(before, 620), reborn(before, 0, score_window_s=300.0)):
        assert after.of() == {}
        after.tick(measured=responses(20, 0.5))
        assert after.of()["latency"] < 0.5


def test_what_was_written_by_another_version_is_refused() -> None:
    """And what is damaged."""
    before = Fixture()
    happened(before)
    memory = dump(before.scores.dependencies, AT_NS)
    packed = memory.packed()
    for broken in (packed[:100], b"", packed.replace(b"PK", b"KP")):
        with pytest.raises(ValueError, match=r"."):
            unpacked(broken, AT_NS)
    other = Memory(AT_NS, {**memory.facts, "format": 2}, memory.arrays).packed()
    with pytest.raises(ValueError, match="format 2"):
        unpacked(other, AT_NS)
