# SPDX-License-Identifier: Apache-2.0
"""ui.scores: what `kernob scores` and `kernob score` print of the agent's documents."""

from __future__ import annotations

import doctest
import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from kernob.ui import scores
from tests.unit.score_fixture import CLIENT, OK, OTHER_PORT, REFUSED, Fixture, connect, responses


def text_of(page: RenderableType, width: int = 120) -> list[str]:
    """The lines of a page."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(page)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture
def reports() -> dict[str, Any]:
    """What an agent answers that saw one bad destination and one good one."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, OK, 3), connect(CLIENT, REFUSED, 7), connect(OTHER_PORT, OK, 9))
    fixture.tick(measured=responses(150, 0.02), step_s=1)
    for _ in range(6):  # until every baseline was looked at
        fixture.tick(step_s=1)
    found = fixture.scores.reports()
    return {"scores": found["scores"]({}), "score": found["score"]({"host": "10.0.0.9:443"})}


def test_the_table_begins_with_the_worst(reports: dict[str, Any]) -> None:
    """Score, whom, each dimension (a dot where unknown), why, and when it failed last."""
    lines = text_of(scores.scores_page(reports["scores"], 40, 120))
    assert lines[0].split()[:5] == ["SCORE", "SERVICE", "DESTINATION", "REL", "LAT"]
    assert lines[1].split()[:9] == ["0.43", "s1", "10.0.0.9:443", "0.30", "1.00", "·", "·", "·", "refused"]
    assert lines[2].split()[:8] == ["1.00", "s1", "10.0.0.9:80", "1.00", "·", "·", "·", "·"]
    assert "window 10m 0s, half-life 2m 0s" in lines[-1]


def test_a_narrow_terminal_has_no_dimensions(reports: dict[str, Any]) -> None:
    """And the table still fits."""
    lines = text_of(scores.scores_page(reports["scores"], 40, 70), 70)
    assert "REL" not in lines[0]
    assert max(map(len, lines)) <= 70


def test_the_limit_says_how_many_are_left_out(reports: dict[str, Any]) -> None:
    """Nothing is cut silently."""
    assert "and 1 more" in text_of(scores.scores_page(reports["scores"], 1, 120))


def test_what_fails_now_stands_first_and_says_so(reports: dict[str, Any]) -> None:
    """Before any reason of the past."""
    reports["scores"]["dependencies"][1]["failing_now"] = 3
    (line,) = (each for each in text_of(scores.scores_page(reports["scores"], 40, 120)) if ":80" in each)
    assert "FAILING NOW: 3 waiting" in line


def test_an_explanation_is_the_sum(reports: dict[str, Any]) -> None:
    """Each dimension with its inputs, the product, the failures, and when it is 1 again."""
    text = "\n".join(text_of(scores.score_page(reports["score"], 120)))
    assert "s1 → 10.0.0.9:443" in text
    assert "7 of 10 attempts to connect failed; 70.00% by weight" in text
    assert "response p95 2" in text
    assert "0 exchanges: needs 5" in text
    assert "= 0.30^0.70 x 1.00^0.30 = 0.43" in text
    assert "failures: refused x7; the last at" in text
    assert (
        "reliability is 1 again in 10m 0s if nothing more fails; what failed weighs half every 2m 0s" in text
    )


def test_a_fast_destination_is_excused_up_to_the_slack() -> None:
    """A usual answer of 0.1 ms: 1 up to 5.1 ms, and from there on 0, not "0 from 1 ms" below that."""
    fixture = Fixture()
    fixture.tick(connect(CLIENT, OK, 3))
    fixture.tick(measured=responses(150, 0.0001), step_s=1)
    for _ in range(6):
        fixture.tick(step_s=1)
    (row,) = fixture.scores.reports()["score"]({"host": "10.0.0.9:443"})["dependencies"]
    (latency,) = (each for each in row["dimensions"] if each["name"] == "latency")
    answers = latency["durations"]["response"]
    assert answers["baseline_s"] < 0.0005
    assert answers["bad_s"] == answers["good_s"] > 0.005
    each = {"samples": 9, "p95_s": 4e-4, "baseline_s": 5e-4, "objective": False, "good_s": 5.5e-3}
    assert scores._timed("connect", {**each, "bad_s": 5.5e-3}, 5) == (
        "connect p95 0.4 ms, usual 0.5 ms: 1 up to 5.5 ms, 0 beyond"
    )
    assert scores._timed("connect", {**each, "bad_s": 6e-3}, 5).endswith("1 up to 5.5 ms, 0 from 6 ms")


def test_names_cannot_write_to_the_terminal(reports: dict[str, Any]) -> None:
    """Whatever a process or a name server chose."""
    for row in (*reports["scores"]["dependencies"], *reports["score"]["dependencies"]):
        row["service"] = "a\x1b[31mb"
        row["address"] = "x\x1b]0;t\x07.example"
    for page in (scores.scores_page(reports["scores"], 40, 120), scores.score_page(reports["score"], 120)):
        assert "\x1b" not in "\n".join(text_of(page))


def test_without_anything_it_says_so() -> None:
    """Not an empty table."""
    document = {"dependencies": [], "left_out": 0, "window_s": 600, "half_life_s": 120}
    assert text_of(scores.scores_page(document, 40, 120)) == [
        "No service here has connected anywhere yet that could be scored."
    ]


def test_examples_in_docstrings_are_true() -> None:
    """Lengths of time."""
    assert doctest.testmod(scores).failed == 0
