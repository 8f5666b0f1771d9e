# SPDX-License-Identifier: Apache-2.0
"""A reporter with a pooled connection to the broker: `reports.py HOST:PORT HEARTBEAT_S beats|forgets`.

It publishes one report, then works on the next one until it is ended; whether it beats meanwhile, as AMQP
wants, is the last word. Its log says what it does, and that is all it notices.
"""

from __future__ import annotations

import sys
import time

from wire import Rabbit, log, place


def main(broker: str, heartbeat_s: str, manner: str) -> None:
    """See the module."""
    rabbit = Rabbit(*place(broker), int(heartbeat_s))
    rabbit.declare("reports")
    rabbit.publish("reports", b"first")
    log(f"report 1 sent from port {rabbit.sock.getsockname()[1]}; working on report 2")
    while True:
        time.sleep(int(heartbeat_s) / 2)
        if manner == "beats":
            rabbit.beat()


if __name__ == "__main__":
    main(*sys.argv[1:])
