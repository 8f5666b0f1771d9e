# SPDX-License-Identifier: Apache-2.0
"""Two who never hear anything, until this process is ended: a caller, and one who asked and waits.

`dark.py NAMESPACE ADDRESS NOWHERE`: ADDRESS is the namespace's, NOWHERE one whose packets are dropped on the
way. One child calls NOWHERE again and again, 7 s each time; this process asks servers that never answer, one
after the other, and waits half a second for each (SO_RCVTIMEO). Standard library only; needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys

from mishaps import ASK, ended, read_nothing, served

CALL_S = 7.0
"""No divisor of a panel's step of 30 s: it would look at each attempt in the same second, and that may be one
of those before the SYN is sent again (seen: with 10 s a fifth of all phases)."""


def call(nowhere: str) -> None:
    """Attempts of which nothing comes."""
    while True:
        with contextlib.suppress(TimeoutError):
            socket.create_connection((nowhere, 80), CALL_S).close()


def wait(namespace: str, address: str) -> None:
    """Questions, one after the other, and waits in vain for their answers."""
    while True:
        client, pid = served(namespace, address, read_nothing)
        with client:
            client.settimeout(None)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 500_000))
            client.sendall(ASK)
            with contextlib.suppress(BlockingIOError):
                client.recv(1)
        ended(pid, signal.SIGKILL)


def main(namespace: str, address: str, nowhere: str) -> int:
    """Both, in a process group of their own, which is ended as a whole."""
    os.setpgid(0, 0)
    if os.fork() == 0:
        call(nowhere)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    print("ready", flush=True)
    wait(namespace, address)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
