# SPDX-License-Identifier: Apache-2.0
"""The demo's own logic: what a story's end means, what is printed, what becomes of the alert rules."""

from __future__ import annotations

import doctest
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from compose import rules
from demo import audit, business, scene, stack, story
from demo.screen import Screen
from demo.stories import STORIES, broker, scores, service_map, stranger
from demo.story import Outcome, Story, choose, closing, judge
from tests.lanes.counts import count

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "victoriametrics" / "rules").glob("*.yaml"))


def a_story(name: str = "one") -> Story:
    """A story that claims nothing."""
    return Story(name, "", lambda _scene: None)


@pytest.mark.parametrize(
    "module",
    [rules, audit, business, scene, story, broker, scores, service_map, stranger],
    ids=lambda m: m.__name__,
)
def test_doctests(module: object) -> None:
    """The examples in the docstrings hold."""
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize(
    ("faulty", "missing", "broken", "good"),
    [
        (True, "", "", True),
        (True, "a RST", "", False),
        (True, "", "no nginx", False),
        (False, "a RST", "", True),
        (False, "", "", False),
        (False, "", "no nginx", False),
    ],
)
def test_a_story_is_good_when_seen_with_its_fault_only(
    faulty: bool, missing: str, broken: str, good: bool
) -> None:
    """What could not be tried at all is never good: without a fault, a broken demo must not look like one."""
    assert judge(Outcome(a_story(), 1.0, missing, broken), faulty).good is good


def test_the_closing_line_counts_what_is_not_as_it_must_be() -> None:
    """A story that is seen without its fault counts as failed."""
    outcomes = [Outcome(a_story(), 1.0, missing="a RST"), Outcome(a_story(), 1.0)]
    assert closing(outcomes, False, 5).startswith("1 of 2 stories failed their check without their fault")
    assert ", 1 failed;" in closing(outcomes, False, 5)


def test_the_closing_line_names_what_was_told_twice() -> None:
    """Nobody takes a second try for a first one; the gate counts it all the same."""
    line = closing([Outcome(a_story("slow"), 1.0, tries=2), Outcome(a_story("loss"), 1.0)], True, 61)
    assert line == "2 of 2 stories seen (slow told twice), 0 failed; 1 min 1 s"
    assert count(line) == (2, 0, 0)


@pytest.mark.parametrize("faulty", [True, False])
def test_the_gate_counts_stories_as_it_counts_tests(faulty: bool) -> None:
    """Both closing lines are read by what adds up the gate's figures."""
    outcomes = [Outcome(a_story(), 1.0, missing="a RST"), Outcome(a_story(), 1.0), Outcome(a_story(), 1.0)]
    assert count(closing(outcomes, faulty, 299)) == ((2, 1, 0) if faulty else (1, 2, 0))


def test_stories_are_told_in_their_order_whatever_the_order_asked_for() -> None:
    """--only chooses, it does not sort."""
    stories = [a_story("a"), a_story("b"), a_story("c")]
    assert [s.name for s in choose(stories, ["c", "a"])] == ["a", "c"]


def test_every_story_has_a_name_of_its_own_and_a_title() -> None:
    """Names are what --only takes."""
    assert len({s.name for s in STORIES}) == len(STORIES)
    assert all(s.title for s in STORIES)


LINKS = re.findall(
    r'scene\.see\("([^"]+)"((?:, \w+=)?)',
    "".join(f.read_text() for f in (ROOT / "demo/stories").glob("*.py")),
)


@pytest.mark.parametrize(("board", "variable"), sorted(set(LINKS)))
def test_links_lead_to_dashboards_that_there_are(board: str, variable: str) -> None:
    """With a variable that the dashboard has."""
    found = [json.loads(file.read_text()) for file in (ROOT / "grafana/dashboards").glob("*.json")]
    (dashboard,) = [each for each in found if each["uid"] == board]
    names = {each["name"] for each in dashboard["templating"]["list"]}
    assert not variable or variable.strip(", =") in names


@pytest.mark.parametrize("file", RULES, ids=lambda f: f.name)
def test_rules_in_a_hurry_wait_for_seconds(file: Path) -> None:
    """No alert of the demo waits for minutes, no group is evaluated seldom; no rule is lost."""
    before, after = file.read_text(), stack.hasten(file.name, file.read_text())
    assert not re.findall(r"(?:for|keep_firing_for|interval): \d+[mh]$", after, re.MULTILINE)
    names = r"- (?:alert|record): (\S+)"
    assert re.findall(names, after) == re.findall(names, before)


def test_the_trend_of_descriptors_is_one_of_seconds_and_the_disk_may_be_a_loop_device() -> None:
    """Windows of the leak are ten seconds an hour; only the demo's rule takes loop devices for disks."""
    text = (ROOT / "victoriametrics" / "rules" / "host.yaml").read_text()
    after = stack.hasten("host.yaml", text)
    leak, disk = after.split("name: kernob-disk")
    assert not re.findall(r"(?:\[|offset )\d+[hd]", leak)
    assert "min_over_time(process_open_file_descriptors[10s])" in leak
    assert "loop" in text
    assert "(loop" not in disk


@pytest.mark.parametrize("colour", ["green", "red"])
def test_no_colour_and_nothing_overwritten_where_there_is_no_terminal(colour: str) -> None:
    """A log file gets plain lines."""
    stream = io.StringIO()
    screen = Screen(stream, is_terminal=False)
    screen.doing("waits")
    screen.line(screen.paint("done", colour))
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1] == "done"


def test_on_a_terminal_the_next_line_takes_the_place_of_what_went_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And NO_COLOR takes the colours away."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    screen = Screen(stream, is_terminal=True)
    screen.doing("waits")
    screen.line(screen.paint("done", "green"))
    assert stream.getvalue().endswith("\r\x1b[K\x1b[32mdone\x1b[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(io.StringIO(), is_terminal=True).paint("done", "green") == "done"


def test_long_lines_are_wrapped_beside_their_label_and_addresses_stay_whole() -> None:
    """A dashboard's address can be clicked."""
    screen = Screen(io.StringIO(), is_terminal=False)
    address = "http://127.0.0.1:3000/d/kernob-tcp?" + "x" * 150
    lines = screen.labelled("see", f"{'word ' * 30}{address}", "dim").splitlines()
    assert lines[0].startswith("   see     word")
    assert any(address in line for line in lines)
    assert all(line.startswith(" " * 11) for line in lines[1:])


def _wrong(arguments: list[str]) -> Callable[[], int]:
    from demo.__main__ import main

    return lambda: main(arguments)


def test_an_unknown_story_ends_the_demo_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, which names those that there are; exit code 2."""
    assert _wrong(["--only", "brokr"])() == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: no story 'brokr'; there are: ")
    assert said.count("\n") == 1
