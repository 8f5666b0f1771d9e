# SPDX-License-Identifier: Apache-2.0
"""Segments sent again under loss: as many as the kernel and `ss -ti` say, charged to who sent them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SCALE, scaled
from tcp_alone import pair, played, rule, run
from tcp_watch import Watch, retransmits_of, watching

pytestmark = [
    pytest.mark.lane,
    pytest.mark.skipif(not shutil.which("nft"), reason="missing feature: nftables"),
]


@pytest.fixture
def watch(agents: Path) -> Iterator[Watch]:
    """All programs."""
    with watching(agents / "cache") as found:
        yield found


def _by_ss(sock: socket.socket) -> int:
    """What `ss -ti` says that a connection has sent again, in all ("retrans:0/12")."""
    port = sock.getsockname()[1]
    told = subprocess.run(
        ["ss", "-tinH", "state", "established", "sport", "=", f":{port}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"retrans:\d+/(\d+)", told)
    return int(found[1]) if found else 0


def _send_all(count: int) -> int:
    """Sends so many bytes over a connection, to a process that reads them all; segments sent again."""
    client, server = pair()
    if not (child := os.fork()):
        client.close()
        read = 0
        while read < count:
            read += len(server.recv(1 << 16))
        server.sendall(b"k")
        assert server.recv(1) == b""
        os._exit(0)
    server.close()
    client.sendall(b"z" * count)
    assert client.recv(1) == b"k"
    assert _by_ss(client) == retransmits_of(client)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    again = retransmits_of(client)
    client.close()
    os.waitpid(child, 0)
    return again


def test_retransmits_are_segments_and_equal_the_kernels_own_count(watch: Watch) -> None:
    """Under 1 % loss: what is charged to the sender is what `ss -ti` says of its sockets; all is RetransSegs.

    Little data is few buffers, of which one in a hundred may be none: then it is one in five.
    """
    loss = "random mod 100 < 1" if SCALE == 1 else "inc mod 5 == 3"
    reader, writer = os.pipe()

    def case() -> None:
        run("ip", "link", "set", "lo", "mtu", "1500")
        rule(f"tcp flags != syn meta length > 100 numgen {loss} drop")
        again = sum(_send_all(scaled(10_000_000)) for _ in range(4))
        os.write(writer, str(again).encode())

    found, segments = played(watch, case)
    os.close(writer)
    with os.fdopen(reader) as stream:
        again = int(stream.read())
    sent, acknowledged = found.pop("client retransmit"), found.pop("server retransmit", 0)
    print(f"sent again: {sent} charged, {again} by ss -ti, {segments} RetransSegs")
    assert sent == again > 0
    assert sent + acknowledged == segments
    assert found == {"client connection ok": 4, "server connection ok": 4}
