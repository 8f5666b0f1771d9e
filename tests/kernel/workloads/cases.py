# SPDX-License-Identifier: Apache-2.0
"""Runs call cases, each in a forked process of its own, and prints one JSON line for each.

`python3 cases.py NAME...` (all when no name is given). A line is the case's ledger with "case", and
"missing" (the absent feature's name) or "error" (a traceback) where it did not run to its end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import calls_connect
import calls_mptcp
import calls_recv
import calls_send
import calls_udp
import calls_uring
from truth import Ledger, MissingFeatureError, say

MODULES = (calls_send, calls_recv, calls_connect, calls_udp, calls_uring, calls_mptcp)
CASES: dict[str, Callable[[Ledger], None]] = {case.__name__: case for m in MODULES for case in m.CASES}


def run(name: str) -> None:
    """Run one case in this process and print its line."""
    ledger = Ledger()
    outcome: dict[str, str] = {}
    try:
        CASES[name](ledger)
    except MissingFeatureError as missing:
        outcome["missing"] = str(missing)
    except Exception:
        outcome["error"] = traceback.format_exc()
    say({"case": name, **outcome, **ledger.as_dict()})


def main(names: list[str]) -> int:
    """Fork, run, wait, one case after the other; 1 when a process ended badly."""
    status = 0
    for name in names or list(CASES):
        pid = os.fork()
        if pid == 0:
            run(name)
            os._exit(0)
        _, how = os.waitpid(pid, 0)
        if how:
            status = 1
            say({"case": name, "pid": pid, "error": f"ended with wait status {how}", "counts": []})
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
