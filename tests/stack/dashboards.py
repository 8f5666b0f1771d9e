# SPDX-License-Identifier: Apache-2.0
"""Holds the dashboards against Grafana's published packages and against a running VictoriaMetrics.

Enters: the generated JSON, VictoriaMetrics' address, a time range. Leaves: lists of problems, empty when all
is well. Called by test_dashboards.py, and by hand:

    python -m tests.stack.dashboards http://127.0.0.1:8428 [minutes]

The part of Grafana is JavaScript from npm (grafana/ beside this file), pinned by its lock file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grafana import check

NODE = Path(__file__).parent / "grafana"
RELEASES = ("9", "13")
_LIMIT_S = 600

QUIET = {
    ("kernob-map", "New destinations of the week", "A"),
    ("kernob-self", "Failed and repeated", "A"),
    ("kernob-self", "Collector: points", "B"),
    ("kernob-self", "VictoriaMetrics: rows", "B"),
    ("kernob-self", "Alerts now", "A"),
    ("kernob-self", "Alerts now", "B"),
    ("kernob-bandwidth", "Alerts now", "A"),
    ("kernob-bandwidth", "Alerts now", "B"),
    ("kernob-host", "Descriptors gained in this range", "A"),
    ("kernob-host", "Descriptors gained in this range", "B"),
    ("kernob-host", "Descriptors gained in this range", "C"),
    ("kernob-dependency", "Failing now", "A"),
    ("kernob-lifecycle", "Crash loops", ""),
    ("kernob-lifecycle", "Crash loops now", "A"),
    ("kernob-lifecycle", "Restarts of what crashes", "A"),
    ("kernob-lifecycle", "Crash loops, now and before", "A"),
    ("kernob-lifecycle", "Killed for memory", "A"),
    ("kernob-lifecycle", "Killed by the kernel or by a signal", "B"),
    ("kernob-time", "Stuck now", "A"),
    ("kernob-time", "Stuck threads", "A"),
    # a thread that has been in one call for KERNOB_BLOCKED_AFTER, which began after the agent
    ("kernob-time", "Waiting now", "A"),
    ("kernob-time", "Idle now", "A"),
    ("kernob-time", "Threads waiting for a peer", "A"),
    ("kernob-time", "Blocked threads now", "A"),
}
"""Queries whose series exist only once something went wrong or hangs: only these may find nothing."""


def missing() -> str:
    """What this machine lacks to run Grafana's code; "" for nothing."""
    return next((f"needs {name}" for name in ("node", "npm") if shutil.which(name) is None), "")


def install() -> None:
    """The packages of the lock file, if they are not there yet. Raises RuntimeError with npm's own words."""
    lock = NODE / "package-lock.json"
    mark = NODE / "node_modules" / ".kernob-lock"
    if mark.exists() and mark.read_bytes() == lock.read_bytes():
        return
    command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps")
    _run(command, "")
    mark.write_bytes(lock.read_bytes())


def schema_problems(boards: Iterable[Mapping[str, Any]]) -> list[str]:
    """What Grafana 9.4's or the current release's published types do not know."""
    return _run(("node", "schema.cjs"), json.dumps(list(boards)), accepted=(0, 1)).splitlines()


def frames(release: str, boards: Mapping[str, dict[str, Any]], runs: list[check.Run]) -> list[dict[str, Any]]:
    """What each panel shows of what its queries found, by that release's own code (frames.cjs)."""
    found = {(each.dashboard, each.place, each.ref): each.result for each in runs}
    panels = [
        {
            "dashboard": uid,
            "panel": panel,
            "results": {t["refId"]: found[uid, panel["title"], t["refId"]] for t in panel["targets"]},
        }
        for uid, board in boards.items()
        for panel in board["panels"]
        if panel["type"] != "row"
    ]
    return list(json.loads(_run(("node", "frames.cjs", release), json.dumps(panels))))


def query_problems(runs: Iterable[check.Run]) -> list[str]:
    """Queries that failed or found nothing."""
    return [
        str(each)
        for each in runs
        if each.error or (each.is_empty and (each.dashboard, each.place, each.ref) not in QUIET)
    ]


def frame_problems(boards: Mapping[str, dict[str, Any]], runs: list[check.Run]) -> list[str]:
    """What Grafana's own code finds wrong with the answers, in either release."""
    return [
        f"Grafana {release}: {panel['dashboard']}: {panel['title']}: {problem}"
        for release in RELEASES
        for panel in frames(release, boards, runs)
        for problem in panel["problems"]
    ]


def _run(command: tuple[str, ...], text: str, accepted: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        command, cwd=NODE, input=text, text=True, capture_output=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode not in accepted or (done.returncode and not done.stdout):
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Check everything against a running VictoriaMetrics; exit code 1 for problems."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m tests.stack.dashboards http://127.0.0.1:8428 [minutes]", file=sys.stderr)
        return 2
    install()
    now_s, boards = time.time(), check.load()
    minutes = float(arguments[1]) if len(arguments) > 1 else 15.0
    runs = check.run(arguments[0], check.Range(now_s - 60 * minutes, now_s), boards=boards)
    problems = schema_problems(boards.values()) + query_problems(runs) + frame_problems(boards, runs)
    print("\n".join([*problems, f"{len(boards)} dashboards, {len(runs)} queries, {len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
