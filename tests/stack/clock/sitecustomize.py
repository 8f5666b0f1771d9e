# SPDX-License-Identifier: Apache-2.0
"""For tests only: a Python that finds this first (PYTHONPATH) is told a time that is off by what a file says.

The agent refuses KERNOB_ variables that it does not know, so the file is always /clock-offset/seconds.
"""

import time
from pathlib import Path

_FILE = Path("/clock-offset/seconds")
_real_ns = time.time_ns


def _shifted_ns() -> int:
    return _real_ns() + int(_FILE.read_text()) * 1_000_000_000


time.time_ns = _shifted_ns
time.time = lambda: _shifted_ns() / 1e9
