# SPDX-License-Identifier: Apache-2.0
"""One end of one connection, moved by commands: a test decides what happens when.

`python3 puppet.py listen [--once]` prints {"port": n}, accepts one connection (with --once it then closes
the listener) and prints {"open": true}; `python3 puppet.py connect PORT` connects and prints that too.
Commands on standard input, one a line, each answered by one JSON line: `send N`, `drain N`, `splice N`
(socket to pipe), `start-drain N` (answered at once, drains in a thread), `join`, `mark` (forget what was
counted), `report` (the ledger), `quit`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from truth import End, Ledger, client_end, listener, say, server_end


def splice(end: End, size: int) -> None:
    """Move `size` bytes from the socket into a pipe."""
    read_fd, write_fd = os.pipe()
    while size:
        moved = end.received(os.splice(end.sock.fileno(), write_fd, size))
        os.read(read_fd, moved)
        size -= moved
    os.close(read_fd)
    os.close(write_fd)


def obey(end: End, ledger: Ledger) -> None:
    """Carry out commands until `quit` or the end of input."""
    threads: list[threading.Thread] = []
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "quit":
            return
        if command == "mark":
            ledger.counts.clear()
        elif command == "join":
            threads.pop().join()
        elif command == "start-drain":
            threads.append(threading.Thread(target=end.drain, args=(int(argument),)))
            threads[-1].start()
        elif command == "splice":
            splice(end, int(argument))
        elif command in ("send", "drain"):
            getattr(end, command)(int(argument))
        elif command != "report":
            raise ValueError(f"unknown command {line!r}")
        say(ledger.as_dict())


def main(arguments: list[str]) -> int:
    """Open the connection and obey."""
    ledger = Ledger()
    if arguments[0] == "listen":
        listening = listener(backlog=1)
        say({"port": listening.getsockname()[1]})
        end = server_end(listening.accept()[0], ledger)
        if "--once" in arguments:
            listening.close()
    else:
        end = client_end(socket.create_connection(("127.0.0.1", int(arguments[1]))), ledger)
    say({"open": True, "pid": ledger.pid})
    obey(end, ledger)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
