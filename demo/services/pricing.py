# SPDX-License-Identifier: Apache-2.0
"""Prices behind a lock: `pricing.py HOLD_S`; one thread renews them once a second, holding it so long.

The other one, the worker, needs the lock for a moment, again and again. Its log says what it always says.
"""

from __future__ import annotations

import sys
import threading
import time

from wire import log

LOCK = threading.Lock()


def renew(hold_s: float) -> None:
    """Hold the lock once a second."""
    while True:
        with LOCK:
            time.sleep(hold_s)
        time.sleep(1 - hold_s)


def main(hold_s: str) -> None:
    """See the module."""
    threading.Thread(target=renew, args=(float(hold_s),), daemon=True, name="renewal").start()
    log("prices are served")
    while True:
        with LOCK:
            pass
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
