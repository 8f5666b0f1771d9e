# SPDX-License-Identifier: Apache-2.0
"""A client with known fates: connections that are answered, refused, reset, and run into silence.

`python3 tcp_counters.py` starts a server process and prints {"port", "server"}. Then it obeys lines:
`open N` opens N connections and keeps them; `close N` closes N of them; `ask N` makes N exchanges on new
connections; `refused N`, `reset N`, `silent N PORT` fail as they say. Every line is answered with a ledger of
what this client saw itself: counts, and the seconds that connecting and waiting for the answer took.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

PAUSES_S = [0.002 * 1.13**step for step in range(40)]
"""How long the server thinks before an answer, in turn: 2 to 235 ms, several in a bucket."""
HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while True:
            question = connection.recv(64)
            if not question:
                return
            if question == b"reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            time.sleep(float(question))
            connection.sendall(b"answer")


class Client:
    """Opens connections and writes down what became of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.kept: list[socket.socket] = []
        self.asked = 0
        self.ledger: dict[str, Any] = {"ok": 0, "connect_s": [], "response_s": []}

    def connect(self) -> socket.socket:
        """Open a connection to the server."""
        began = time.perf_counter()
        connection = socket.create_connection((HOST, self.port))
        self.ledger["connect_s"].append(time.perf_counter() - began)
        self.ledger["ok"] += 1
        return connection

    def fail(self, port: int, syn_retries: int = 0) -> None:
        """Try to open one that cannot be; the name of the error is counted."""
        with socket.socket() as connection:
            if syn_retries:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, syn_retries)
            try:
                connection.connect((HOST, port))
            except OSError as error:
                name = type(error).__name__
                self.ledger[name] = self.ledger.get(name, 0) + 1

    def ask(self) -> None:
        """One exchange on a connection of its own."""
        with self.connect() as connection:
            pause_s = PAUSES_S[self.asked % len(PAUSES_S)]
            self.asked += 1
            began = time.perf_counter()
            connection.sendall(b"%.6f" % pause_s)
            assert connection.recv(64) == b"answer"
            self.ledger["response_s"].append(time.perf_counter() - began)

    def be_reset(self) -> None:
        """Ask for a RST and wait for it."""
        with self.connect() as connection:
            connection.sendall(b"reset")
            try:
                connection.recv(64)
            except ConnectionResetError:
                self.ledger["resets"] = self.ledger.get("resets", 0) + 1


def _obey(client: Client, words: list[str]) -> None:
    count = int(words[1])
    for _ in range(count):
        match words[0]:
            case "open":
                client.kept.append(client.connect())
            case "close":
                client.kept.pop().close()
            case "ask":
                client.ask()
            case "refused":
                client.fail(int(words[2]))
            case "reset":
                client.be_reset()
            case "silent":
                client.fail(int(words[2]), syn_retries=1)


def main() -> None:
    """See the module."""
    listener = socket.create_server((HOST, 0), backlog=1024)
    port = listener.getsockname()[1]
    server = os.fork()
    if not server:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _serve(listener)
    listener.close()
    client = Client(port)
    print(json.dumps({"port": port, "server": server, "client": os.getpid()}), flush=True)
    try:
        for line in sys.stdin:
            _obey(client, line.split())
            print(json.dumps(client.ledger), flush=True)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


main()
