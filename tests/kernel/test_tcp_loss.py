# SPDX-License-Identifier: Apache-2.0
"""What TCP measures by itself: segments sent again, and the smoothed round trip time, as `ss -ti` says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from harness import SCALE, scaled
from tcp_alone import pair, played, rule, run
from tcp_watch import ANSWER, ASK, Watch, act, exchange, listener, read_exactly, retransmits_of

pytestmark = pytest.mark.lane


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


@pytest.mark.skipif(not shutil.which("nft"), reason="missing feature: nftables")
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


def _smoothed_us(sock: socket.socket) -> int:
    """tcpi_rtt."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[68:72], sys.byteorder)


def _round_trips(watch: Watch, connections: int) -> tuple[int, float, int, int]:
    """Samples of so many connections: their number and sum; between what TCP_INFO's sum was meanwhile."""
    door = listener()
    told, tell = os.pipe()

    def answer_all() -> None:
        socks = [door.accept()[0] for _ in range(connections)]
        for _ in range(3):
            for sock in socks:
                read_exactly(sock, len(ASK))
                sock.sendall(ANSWER)
        for sock in socks:
            sock.recv(1)

    def ask_all() -> None:
        socks = [socket.create_connection(door.getsockname()) for _ in range(connections)]
        for sock in socks:
            exchange(sock)
        time.sleep(1.1)
        least = most = 0
        for sock in socks:  # this send takes a sample, the next comes too early for one
            before = _smoothed_us(sock)
            sock.sendall(ASK)
            after = _smoothed_us(sock)
            assert read_exactly(sock, len(ANSWER)) == ANSWER
            least, most = least + min(before, after), most + max(before, after)
        for sock in socks:
            exchange(sock)
            sock.close()
        os.write(tell, f"{least} {most}".encode())

    actors = [act(answer_all), act(ask_all)]
    door.close()
    os.close(tell)
    for actor in actors:
        actor.wait()
    watch.settle({actor.pid for actor in actors})
    with os.fdopen(told) as stream:
        least, most = map(int, stream.read().split())
    mine = [(n, s) for pid, kind, n, s in watch.durations if (pid, kind) == (actors[1].pid, "rtt")]
    return sum(n for n, _ in mine), sum(s for _, s in mine) * 1e6, least, most


def test_round_trip_times_are_the_kernels_own(watch: Watch) -> None:
    """Each second at most one sample a connection, of what TCP_INFO says at that moment.

    A machine so busy that a play takes a second longer takes more samples: then it is played again.
    """
    for _ in range(10):
        count, sum_us, least, most = _round_trips(watch, connections=20)
        print(f"{count} samples, {sum_us:.0f} us in all; TCP_INFO: {least} to {most} us")
        assert count >= 20
        if count == 20:
            break
    else:
        pytest.fail("never as many samples as sends after a second")
    assert least - count <= sum_us <= most + count
