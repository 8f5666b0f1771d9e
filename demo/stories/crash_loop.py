# SPDX-License-Identifier: Apache-2.0
"""A crash loop of lives under a second, with nothing in any log.

A mailer ends with code 3 after a tenth of a second, before its logger has flushed; its supervisor starts it
again and again and says nothing. Kernob counts every exit, by code, tells each with its time, and finds the
loop. Without the fault the mailer runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demo.business import SERVICES
from demo.scene import Scene, clock
from demo.story import Story

SERVICE = "mailer.sh"
ALERT = "KernobCrashLoop"
CODE, LEAST_LIVES = 3, 8
SAME_MOMENT_S = 1.0


def lives(file: Path) -> list[tuple[int, int, float]]:
    """What the supervisor noted of lives that ended: process id, exit code, Unix time."""
    rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(pid), int(code), float(when)) for pid, code, when in rows]


def run(scene: Scene) -> None:
    """See the module."""
    note = scene.business.place / "lives"
    words = ("sh", SERVICES / SERVICE, "crashes" if scene.faulty else "runs")
    supervisor = scene.program("supervisor.py", note, *words, word="supervising")
    scene.fault(f"{SERVICE} ends with code {CODE} a tenth of a second after each start")

    def begins() -> dict[str, Any] | None:
        found = scene.events("crash_loop", SERVICE)
        return next((e for e in found if dict(e["details"])["kernob.crash_loop.state"] == "begin"), None)

    loop = scene.expect("an event of a crash loop", begins, 40)
    scene.log(f"{supervisor.lines()[-1]}   (all that is said, by anybody)")
    scene.says(f"{clock(loop['time_unix_ns'] / 1e9)} {loop['body']}")
    life_s = float(dict(loop["details"])["kernob.crash_loop.life"])
    scene.must(life_s < 1, f"its lives are {life_s:.2f} s long")

    scene.expect(f"{LEAST_LIVES} lives", lambda: len(lives(note)) >= LEAST_LIVES, 40)
    ended = {pid: when for pid, _, when in lives(note)}
    told = scene.expect(
        "exits told one by one", lambda: [e for e in scene.events("exit", SERVICE) if e["pid"] in ended], 30
    )
    scene.must(told, f"{len(told)} exits told one by one: {told[0]['body']}")
    apart_s = max(abs(e["time_unix_ns"] / 1e9 - ended[e["pid"]]) for e in told)
    scene.must(apart_s < SAME_MOMENT_S, f"each within {apart_s * 1e3:.0f} ms of what its supervisor noted")
    scene.delivered(loop)

    def listed() -> bool:
        return any(each["service"] == SERVICE for each in scene.document("lifecycle")["crash_loops"])

    found = scene.expect("it in `kernob lifecycle`", listed, 30)
    scene.must(found, f"`kernob lifecycle` has {SERVICE} among its loops")
    alert = scene.expect(ALERT, lambda: scene.firing(ALERT, kernob_service=SERVICE), 60)[0]
    scene.says(f"{ALERT}: {alert.summary}")
    supervisor.end()
    total = len(lives(note))
    selector = f'kernob_service="{SERVICE}",process_exit_code="{CODE}"'

    def counted() -> float | None:
        exits = scene.grown("kernob_process_exits_total", selector)
        return exits if exits >= total else None

    exits = scene.expect(f"all {total} exits as a metric", counted, 30)
    # the last one may have ended when its supervisor could not note it any more
    scene.must(exits <= total + 1, f"kernob.process.exits, code {CODE}: {exits:.0f} of {total} that it noted")
    scene.expect("the alert's end", lambda: not scene.firing(ALERT, kernob_service=SERVICE), 120)
    scene.must(True, "the mailer is stopped, the alert resolved")
    scene.see("kernob-lifecycle", service=SERVICE)


STORY = Story("crashes", "A crash loop faster than anybody's log", run)
