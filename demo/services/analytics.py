# SPDX-License-Identifier: Apache-2.0
"""A new program that reads orders: `analytics.py POSTGRES_PORT`; once a second."""

from __future__ import annotations

import sys
import time

from wire import Postgres, log


def main(port: str) -> None:
    """See the module."""
    postgres = Postgres("127.0.0.1", int(port))
    log("analytics run")
    while True:
        postgres.do("SELECT count(*) FROM orders")
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
