# SPDX-License-Identifier: Apache-2.0
"""Events that a hook is not run for: what happens to the connection afterwards tells them.

The hook is taken away in the middle of a case, which is what a kernel does to us that does not run it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tcp_alone import alone, flush, pair, rule, setting
from tcp_watch import ASK, Watch, read_exactly, watching

pytestmark = pytest.mark.skipif(not shutil.which("nft"), reason="missing feature: nftables")


def _detach(watch: Watch, hook: str = "__set_state") -> None:
    """Takes a hook away, as far as this process holds it."""
    links = [link for link in watch.session.links if link.program.name.endswith(hook)]
    assert links
    for link in links:
        link.detach()


@contextlib.contextmanager
def _without_state_hook(watch: Watch) -> Iterator[Callable[[], None]]:
    """A function for the case to call, from whose return on no change of a state is told."""
    ask, asked = os.pipe()
    answer, answered = os.pipe()

    def detach_when_asked() -> None:
        if os.read(ask, 1):
            _detach(watch)
            os.write(answered, b"d")

    def leave() -> None:
        _detach(watch)  # the process that plays the case has inherited it
        os.write(asked, b"d")
        assert os.read(answer, 1)

    thread = threading.Thread(target=detach_when_asked)
    thread.start()
    try:
        yield leave
    finally:
        os.close(asked)
        thread.join()
        for end in (ask, answer, answered):
            os.close(end)


def _silenced(client: socket.socket, server: socket.socket) -> None:
    """Asks once and is answered, then asks into the void, for a second."""
    client.sendall(ASK)
    read_exactly(server, len(ASK))
    server.sendall(b"a")
    client.recv(1)
    rule("tcp dport != 0 drop")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    client.sendall(ASK)


@pytest.mark.parametrize("how", ["told by a call", "never asked"])
def test_a_connection_that_the_network_gave_up(agents: Path, how: str) -> None:
    """Its timeout and the drop are told when it is destroyed, be its process told or not."""

    def case() -> None:
        client, server = pair()
        _silenced(client, server)
        leave()
        while client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\7":  # CLOSE
            time.sleep(0.05)
        if how == "told by a call":
            with pytest.raises(TimeoutError):
                client.recv(1)
        flush()

    with watching(agents / "cache") as watch, _without_state_hook(watch) as leave:
        assert alone(watch, case) == {
            "client connection ok": 1,
            "server connection ok": 1,
            "client timeout unacknowledged": 1,
            "client drop unanswered by network": 1,
        }
        assert watch.lost() == {}


def test_an_attempt_that_the_network_gave_up(agents: Path) -> None:
    """Its SYN was sent again, so it timed out."""

    def case() -> None:
        setting("tcp_syn_retries", 1)
        rule("tcp dport 9 drop")
        with socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EINPROGRESS
            leave()
            sock.setblocking(True)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ETIMEDOUT

    with watching(agents / "cache") as watch, _without_state_hook(watch) as leave:
        assert alone(watch, case) == {"client connection timed_out": 1}
        assert watch.lost() == {}


def test_a_syn_that_was_sent_again(agents: Path) -> None:
    """Without its own hook it is counted when the attempt fails: `alone` holds that against RetransSegs."""

    def case() -> None:
        setting("tcp_syn_retries", 1)
        rule("tcp dport 9 drop")
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ETIMEDOUT

    with watching(agents / "cache") as watch:
        _detach(watch, "__retransmit")
        assert alone(watch, case) == {"client connection timed_out": 1}
        assert watch.lost() == {}
