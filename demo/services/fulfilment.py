# SPDX-License-Identifier: Apache-2.0
"""The fulfilment, in a container: `fulfilment.py RABBIT POSTGRES`, each HOST:PORT; marks orders paid."""

from __future__ import annotations

import sys
import time

from wire import Postgres, Rabbit, log, place


def main(rabbit_place: str, postgres_place: str) -> None:
    """See the module."""
    rabbit, postgres = Rabbit(*place(rabbit_place)), Postgres(*place(postgres_place))
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
