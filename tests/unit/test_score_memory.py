# SPDX-License-Identifier: Apache-2.0
"""Windows of scores across restarts: what is kept, what ages meanwhile, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kernob.model import Drop, Fate, Resent
from kernob.state.score_memory import Memory, dump, load, unpacked
from tests.unit.score_fixture import (
    ANSWERED,
    AT_NS,
    CLIENT,
    ESTABLISHED,
    OK,
    OTHER_PORT,
    REFUSED,
    Fixture,
    connect,
    responses,
    socks,
)


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
