# SPDX-License-Identifier: Apache-2.0
"""Adds up what runs of pytest and of the demo say at their end.

Enters: log files. Leaves: "PASSED FAILED SKIPPED" on standard output. Called by .ci/run.
Errors count as failures and expected failures as skips, so that nothing goes uncounted.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

CLOSING = re.compile(r"^=* ?(?P<counts>(?:\d+ [a-z]+(?:, )?)+) in [\d.]+s(?: \([\d:]+\))? ?=*$")
STORIES = re.compile(r"^(?P<good>\d+) of \d+ stories .*, (?P<failed>\d+) failed; \d+ min \d+ s$")
KIND = {
    "passed": "passed",
    "failed": "failed",
    "error": "failed",
    "errors": "failed",
    "xpassed": "failed",
    "skipped": "skipped",
    "xfailed": "skipped",
}


def count(log: str) -> tuple[int, int, int]:
    r"""Return (passed, failed, skipped) over all closing lines of a log.

    >>> count("== 1 failed, 12 passed, 2 skipped in 61.20s (0:01:01) ==\n2 passed in 0.1s")
    (14, 1, 2)
    >>> count("14 of 15 stories seen, 1 failed; 4 min 59 s")
    (14, 1, 0)
    """
    total: Counter[str] = Counter()
    for line in log.splitlines():
        if closing := CLOSING.match(line.strip()):
            for pair in closing["counts"].split(", "):
                number, word = pair.split()
                total[KIND.get(word, "")] += int(number)
        elif stories := STORIES.match(line.strip()):
            total["passed"] += int(stories["good"])
            total["failed"] += int(stories["failed"])
    return total["passed"], total["failed"], total["skipped"]


if __name__ == "__main__":
    print(*count("\n".join(Path(name).read_text(errors="replace") for name in sys.argv[1:])))
