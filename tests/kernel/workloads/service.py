# SPDX-License-Identifier: Apache-2.0
"""One service of a topology: listens, answers, and calls others; see tests/kernel/topology.py.

    service.py '{"listen": ["10.0.0.1", 80], "workers": 4, "calls": [["10.0.0.2", 6379, "keep", "x"]]}'

`keep` holds one connection and asks on it again and again, `short` opens one for each question, `once` asks
once and ends the process. `relay` passes everything on to another address, as docker-proxy does.
A docker-proxy's own options may stand behind: they are nobody's business here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PAUSE_S = 0.25


def answer(connection: socket.socket) -> None:
    """Answers whatever is asked, until the peer closes."""
    with connection:
        try:
            while connection.recv(4096):
                connection.sendall(ANSWER)
        except OSError:
            return


def relay(connection: socket.socket, to: tuple[str, int]) -> None:
    """Passes a question and its answer on."""
    with connection, socket.create_connection(to, 5) as behind:
        while asked := connection.recv(4096):
            behind.sendall(asked)
            connection.sendall(behind.recv(4096))


def serve(listener: socket.socket, to: tuple[str, int] | None) -> None:
    """Accepts for ever, a thread for each connection."""
    while True:
        connection, _ = listener.accept()
        work: tuple[Any, ...] = (answer, (connection,)) if to is None else (relay, (connection, to))
        threading.Thread(target=work[0], args=work[1], daemon=True).start()


def ask(where: tuple[str, int], question: bytes, again: bool) -> None:
    """Asks on one connection, once or until it fails."""
    with socket.create_connection(where, 2) as connection:
        connection.settimeout(5)
        while True:
            connection.sendall(question)
            if not connection.recv(4096) or not again:
                return
            time.sleep(PAUSE_S)


def call(address: str, port: int, how: str, question: str) -> None:
    """Calls somebody for ever, whatever comes of it."""
    while True:
        with contextlib.suppress(OSError):
            ask((address, port), question.encode("latin-1"), how == "keep")
        if how == "once":
            return
        time.sleep(PAUSE_S)


def main() -> None:
    """Listens first, forks its workers, then calls."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    if "listen" in plan:
        listener = socket.create_server(tuple(plan["listen"]), backlog=64)
        to = tuple(plan["relay"]) if "relay" in plan else None
        for _ in range(plan.get("workers", 0)):
            if os.fork() == 0:
                break
        threading.Thread(target=serve, args=(listener, to), daemon=True).start()
    threads = [threading.Thread(target=call, args=args, daemon=True) for args in plan.get("calls", ())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if "listen" in plan:
        time.sleep(3600)


main()
