# SPDX-License-Identifier: Apache-2.0
"""What a story is, and what its end means. No input, no output; `scene` is what a story is told in.

A story passes when everything it claims was seen. Without its fault it must not: then `judge` turns the
verdict round, so that a check which is true of anything does not pass for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scene import Scene


HOST, PAYMENTS, ALONE = "host", "payments", "alone"


class MissingError(Exception):
    """Something a story claims was not seen; the message says what."""


@dataclass(frozen=True)
class Story:
    """One of demo/stories.

    Stories of one `lane` are told one after another, because they disturb each other. A lane that is `ALONE`
    takes long and disturbs nobody: it is begun first, beside the others, in every form of the demo.
    """

    name: str
    title: str
    run: Callable[[Scene], None]
    lane: str = HOST


@dataclass(frozen=True)
class Outcome:
    """How a story ended: `missing` is what was not seen, `broken` why the demo itself could not go on.

    `tries`: how often it was told.
    """

    story: Story
    seconds: float
    missing: str = ""
    broken: str = ""
    tries: int = 1

    @property
    def seen(self) -> bool:
        """Whether all it claims was seen."""
        return not self.missing and not self.broken


@dataclass(frozen=True)
class Verdict:
    """What an outcome means: `good` or not, in a word and a sentence."""

    good: bool
    word: str
    why: str


def judge(outcome: Outcome, faulty: bool) -> Verdict:
    """Good is: seen with its fault, not seen without it.

    >>> from demo.story import Outcome, Story, judge
    >>> story = Story("broker", "", lambda scene: None)
    >>> judge(Outcome(story, 1.0, missing="a RST"), faulty=False).word
    'FAILED AS IT MUST'
    >>> judge(Outcome(story, 1.0), faulty=False).good
    False
    """
    if outcome.broken:
        return Verdict(False, "BROKEN", outcome.broken)
    if faulty:
        return Verdict(True, "SEEN", "") if outcome.seen else Verdict(False, "NOT SEEN", outcome.missing)
    if outcome.seen:
        return Verdict(False, "SEEN WITHOUT ITS FAULT", "so its check proves nothing")
    return Verdict(True, "FAILED AS IT MUST", outcome.missing)


def closing(outcomes: Sequence[Outcome], faulty: bool, seconds: float) -> str:
    """The last line: how many were what they must be.

    >>> from demo.story import Outcome, Story, closing
    >>> story = Story("broker", "", lambda scene: None)
    >>> closing([Outcome(story, 1.0), Outcome(story, 2.0, missing="a RST")], True, 61)
    '1 of 2 stories seen, 1 failed; 1 min 1 s'
    """
    good = sum(judge(each, faulty).good for each in outcomes)
    what = "seen" if faulty else "failed their check without their fault, as they must"
    if again := [each.story.name for each in outcomes if each.tries > 1]:
        what += f" ({', '.join(again)} told twice)"
    took = f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{good} of {len(outcomes)} stories {what}, {len(outcomes) - good} failed; {took}"


def lanes(stories: Sequence[Story], beside: bool) -> list[list[Story]]:
    """Stories that are told one after another, list beside list; `beside`: as many lists as may be.

    >>> from demo.story import ALONE, PAYMENTS, Story, lanes
    >>> def a(name, *lane): return Story(name, "", lambda scene: None, *lane)
    >>> told = [a("leak", ALONE), a("broker"), a("refuses", PAYMENTS), a("disk")]
    >>> [[story.name for story in lane] for lane in lanes(told, beside=True)]
    [['leak'], ['broker', 'disk'], ['refuses']]
    >>> [[story.name for story in lane] for lane in lanes(told, beside=False)]
    [['leak'], ['broker', 'refuses', 'disk']]
    """
    found: dict[str, list[Story]] = {}
    for story in stories:
        found.setdefault(story.lane if beside or story.lane == ALONE else HOST, []).append(story)
    return list(found.values())


def choose(stories: Sequence[Story], wanted: Sequence[str]) -> list[Story]:
    """Those of these names, all of them if none is named. ValueError says what is valid.

    >>> from demo.story import Story, choose
    >>> choose([Story("broker", "", lambda scene: None)], ["brokr"])
    Traceback (most recent call last):
        ...
    ValueError: no story 'brokr'; there are: broker
    """
    known = {story.name: story for story in stories}
    for name in wanted:
        if name not in known:
            raise ValueError(f"no story {name!r}; there are: {', '.join(known)}")
    return [story for story in stories if not wanted or story.name in wanted]
