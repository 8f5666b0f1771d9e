# SPDX-License-Identifier: Apache-2.0
"""Unix times that do not go back when the clock does."""

from __future__ import annotations

import pytest

from kernob.state.stamps import Stamps

SECOND_NS = 10**9
APART_NS = 4_000_000


class Clock:
    def __init__(self) -> None:
        self.ns = 1_700_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_stamps_are_the_clock_s_while_it_goes_on(clock: Clock) -> None:
    """Also over a step forward."""
    stamps = Stamps(APART_NS, clock)
    for step_s in (10, 3600, 1):
        clock.ns += step_s * SECOND_NS
        assert stamps.next() == clock.ns


def test_a_clock_set_back_stops_the_stamps_and_is_told_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Stamps go on in their order, a few ms apart, until the clock has caught up; one line each way."""
    stamps = Stamps(APART_NS, clock)
    clock.ns += 100 * SECOND_NS
    last_ns = stamps.next()
    clock.ns -= 5 * SECOND_NS
    for _ in range(4):
        clock.ns += SECOND_NS
        now_ns = stamps.next()
        assert now_ns == last_ns + APART_NS
        last_ns = now_ns
    clock.ns += 2 * SECOND_NS
    assert stamps.next() == clock.ns
    assert [record.getMessage() for record in caplog.records] == [
        "the clock was set back by 4.000 s; points wait for it to catch up",
        "the clock has caught up",
    ]


def test_a_clock_set_back_far_is_followed(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """More than five minutes: the stamps go back with it, and a line says what that means."""
    stamps = Stamps(APART_NS, clock)
    clock.ns -= 3600 * SECOND_NS
    assert stamps.next() == clock.ns
    clock.ns += SECOND_NS
    assert stamps.next() == clock.ns
    (record,) = caplog.records
    assert "set back by 3600 s" in record.getMessage()


def test_two_ticks_in_one_instant_are_told_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Without a word: nothing was set back."""
    stamps = Stamps(APART_NS, clock)
    first_ns = stamps.next()
    assert stamps.next() == first_ns + APART_NS
