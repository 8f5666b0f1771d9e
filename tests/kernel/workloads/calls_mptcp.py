# SPDX-License-Identifier: Apache-2.0
"""MPTCP: bytes are counted once, on the socket the process holds, not again on its subflows."""

from __future__ import annotations

import socket

import linux
from truth import Ledger, MissingFeatureError, client_end, listener, server_end


def _run(ledger: Ledger, client_protocol: int, server_protocol: int) -> None:
    try:
        listening = listener(protocol=server_protocol)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, client_protocol)
    except OSError as error:
        raise MissingFeatureError(f"MPTCP ({error.strerror})") from error
    sock.connect(listening.getsockname())
    accepted, _ = listening.accept()
    client, server = client_end(sock, ledger), server_end(accepted, ledger)
    client.send(7_700)
    server.drain(7_700)
    server.send(77)
    client.drain(77)
    client.send(70_000)
    server.drain(70_000)
    for end in (client, server, listening):
        end.close()


def mptcp(ledger: Ledger) -> None:
    """MPTCP at both ends."""
    _run(ledger, linux.IPPROTO_MPTCP, linux.IPPROTO_MPTCP)


def mptcp_client_falls_back(ledger: Ledger) -> None:
    """An MPTCP client of a plain TCP server."""
    _run(ledger, linux.IPPROTO_MPTCP, 0)


def mptcp_server_falls_back(ledger: Ledger) -> None:
    """A plain TCP client of an MPTCP server (Go's default listener)."""
    _run(ledger, 0, linux.IPPROTO_MPTCP)


CASES = (mptcp, mptcp_client_falls_back, mptcp_server_falls_back)
