# SPDX-License-Identifier: Apache-2.0
"""A ledger in a Redis that syncs each entry to its disk: `ledger.py REDIS_PORT`; five entries a second."""

from __future__ import annotations

import sys
import time

from wire import Redis, log


def main(port: str) -> None:
    """See the module."""
    redis = Redis("127.0.0.1", int(port))
    log("ledger is kept")
    while True:
        redis.do(b"INCR", b"entries")
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
