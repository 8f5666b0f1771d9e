# SPDX-License-Identifier: Apache-2.0
"""A process talks to a destination it was never seen to talk to before.

A courier goes to the storage all the time; one day it also goes to an address outside. What it did in its
learning period (a day in life, 20 seconds in the demo) raises nothing; the new address is one event and one
point of a metric. Without the fault it goes to the storage only.
"""

from __future__ import annotations

from typing import Any

from demo.business import STORAGE_NAME, STORAGE_PORT
from demo.network import STRANGER
from demo.scene import Scene, clock
from demo.stack import LEARNING_S
from demo.story import Story

SERVICE = "courier.py"
STRANGER_PORT = 4444
ALERT = "KernobNewDestination"


def is_learning(event: dict[str, Any]) -> bool:
    """Whether an event says that its service was still being learned.

    >>> is_learning({"details": [["kernob.learning", True]]})
    True
    """
    return dict(event["details"]).get("kernob.learning") is True


def run(scene: Scene) -> None:
    """See the module."""
    business = scene.business
    business.program("dropzone.py", STRANGER, STRANGER_PORT, outside=True)
    business.wait_for_word("dropzone", "open")
    usual, other = f"{STORAGE_NAME}:{STORAGE_PORT}", f"{STRANGER}:{STRANGER_PORT}"
    go = business.place / "go"
    courier = scene.program(SERVICE, usual, go, other if scene.faulty else usual, word="carrying")
    # It is learned from when it is first seen, which on a busy machine is later than when it starts.
    scene.needs("the courier to be seen", lambda: scene.events("new", SERVICE), 30)
    scene.screen.doing(f"{scene.name}: the courier is learned for {LEARNING_S} s")
    scene.pause(LEARNING_S + 6)
    go.touch()
    scene.fault(f"{SERVICE} (PID {courier.pid}), until now seen with {usual} only, goes to {other}")

    def news() -> list[dict[str, Any]]:
        return [e for e in scene.events("new", SERVICE) if not is_learning(e)]

    event = scene.expect("an event of a new destination", news, 30)[0]
    scene.log(f"{courier.lines()[-1]}   (all it says)")
    scene.says(f"{clock(event['time_unix_ns'] / 1e9)} {event['body']}")
    scene.delivered(event)
    told = scene.expect("all its events", lambda: scene.events("new", SERVICE), 30)
    learned = [e for e in told if is_learning(e)]
    scene.must(len(told) - len(learned) == 1, "one event, and none more for the connections after it")
    scene.must(
        [e["port"] for e in learned] == [STORAGE_PORT],
        f"{usual} was learned in the first {LEARNING_S} s and alerts nobody",
    )
    words = ("destinations", "list", SERVICE)
    rows = scene.expect("its destinations", lambda: scene.document(*words)["destinations"], 30)
    states = {(row["port"], row["state"]) for row in rows}
    scene.must(
        states == {(STORAGE_PORT, "learned"), (STRANGER_PORT, "new")},
        f"`kernob destinations list {SERVICE}`: {STORAGE_PORT} is learned, {STRANGER_PORT} is new",
    )
    chosen = f'kernob_service="{SERVICE}",kernob_destination_state="new"'
    seen = scene.expect(
        "the destination as a metric",
        lambda: scene.query(f"kernob_destination_first_seen_seconds{{{chosen}}}"), 30,
    )  # fmt: skip
    addresses = {sample.labels["server_address"] for sample in seen}
    scene.must(addresses == {STRANGER}, f"kernob.destination.first_seen: {STRANGER} and nothing else is new")
    fires = scene.expect(ALERT, lambda: scene.firing(ALERT, kernob_service=SERVICE), 60)
    scene.must(len(fires) == 1, f"one alert: {ALERT}: {fires[0].summary}")
    scene.see("kernob-map")


STORY = Story("stranger", "A process talks to where it never talked to before", run)
