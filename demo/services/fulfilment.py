# SPDX-License-Identifier: Apache-2.0
"""The fulfilment, in a container: `fulfilment.py RABBIT_PORT POSTGRES_PORT`; marks orders paid."""

from __future__ import annotations

import sys
import time

from wire import Postgres, Rabbit, log


def main(rabbit_port: str, postgres_port: str) -> None:
    """See the module."""
    rabbit = Rabbit("127.0.0.1", int(rabbit_port))
    postgres = Postgres("127.0.0.1", int(postgres_port))
    rabbit.declare("orders")
    log("fulfilment waits")
    while True:
        number = rabbit.get("orders")
        if number is None:
            time.sleep(0.2)
        else:
            postgres.do(f"UPDATE orders SET paid = true WHERE id = {int(number)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
