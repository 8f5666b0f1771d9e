# SPDX-License-Identifier: Apache-2.0
"""Runs scenarios of several processes, each forked off on its own, and prints one JSON line for each.

`python3 scenarios.py NAME...` (all when no name is given). A line is {"case": name, "processes":
[ledger, ...], "notes": {...}}, with "missing" (the absent feature's name) or "error" (a traceback) where a
scenario did not run to its end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import scenarios_identity
import scenarios_sharing
from children import Result
from truth import MissingFeatureError, say

SCENARIOS: dict[str, Callable[[dict[str, Any]], Result]] = {
    scenario.__name__: scenario for m in (scenarios_sharing, scenarios_identity) for scenario in m.SCENARIOS
}


def run(name: str) -> None:
    """Run one scenario in this process and print its line."""
    notes: dict[str, Any] = {}
    outcome: dict[str, Any] = {"processes": []}
    try:
        outcome = {"processes": SCENARIOS[name](notes)}
    except MissingFeatureError as missing:
        outcome["missing"] = str(missing)
    except Exception:
        outcome["error"] = traceback.format_exc()
    say({"case": name, "notes": notes, **outcome})


def main(names: list[str]) -> int:
    """Fork for each named scenario (all when none is named), so that none shares a process with another."""
    status = 0
    for name in names or list(SCENARIOS):
        pid = os.fork()
        if pid == 0:
            run(name)
            os._exit(0)
        _, how = os.waitpid(pid, 0)
        if how:
            status = 1
            say({"case": name, "error": f"ended with wait status {how}", "processes": []})
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
