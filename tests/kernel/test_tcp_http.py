# SPDX-License-Identifier: Apache-2.0
"""Responses that an orderly close cuts short: told apart from whole ones by what HTTP/1 itself says.

Each case is one response as bytes, the way a server sends it and the way a client reads it.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from tcp_watch import Gate, Watch, abort, act, listener, name_of, read_exactly, wait_for_fin, watching

OK = {"client connection ok": 1}
CUT = OK | {"client drop eof_mid_response by peer": 1}
HEAD = b"HTTP/1.1 200 OK\r\nServer: test\r\n"
LENGTH = HEAD + b"Content-Length: 1000\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MANY = b"".join(b"X-Field-%d: %s\r\n" % (i, b"v" * 30) for i in range(15))
BODY = b"b" * 1000
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LATE_S = 1.0
Reader = Callable[[socket.socket], Iterator[None]]
"""Reads to the end, one step each time it has received something."""


@pytest.fixture(scope="module")
def watch(all_programs: Watch) -> Watch:
    """One session for all cases."""
    if not any(report.hook == "http" and report.strategy for report in all_programs.session.reports):
        pytest.skip("missing feature: bpf_task_pt_regs and BTF")
    return all_programs.anew()


def in_lanes(cases: Iterable[str], *chosen: str) -> list[ParameterSet]:
    """All cases; the emulated kernels run the chosen ones, for how it is read differs there, not HTTP."""
    return [pytest.param(case, marks=pytest.mark.lane if case in chosen else (), id=case) for case in cases]


def recv(sock: socket.socket) -> Iterator[None]:
    """By recv, as most read."""
    while sock.recv(8192):
        yield


def recv_small(sock: socket.socket) -> Iterator[None]:
    """The head in one call, then three bytes at a time."""
    sock.recv(400)
    yield
    while sock.recv(3):
        yield


def read(sock: socket.socket) -> Iterator[None]:
    """By descriptor, waiting by epoll, as event loops do."""
    poller = select.epoll()
    poller.register(sock, select.EPOLLIN)
    while poller.poll(10) and os.read(sock.fileno(), 4096):
        yield


def readv(sock: socket.socket) -> Iterator[None]:
    """Into three buffers at a time, the first of which holds the head."""
    while os.readv(sock.fileno(), [bytearray(600), bytearray(100), bytearray(5000)]):
        yield


def recvmsg(sock: socket.socket) -> Iterator[None]:
    """Into one buffer, as a message."""
    while sock.recvmsg(5000)[0]:
        yield


def bytewise(sock: socket.socket) -> Iterator[None]:
    """One byte a call: nothing can be told."""
    while sock.recv(1):
        yield


def play_as(
    watch: Watch,
    parts: tuple[bytes, ...],
    read_all: Reader = recv,
    request: bytes = REQUEST,
    host: str = "127.0.0.1",
) -> tuple[int, dict[str, int]]:
    """The client's process and facts: it asks, reads to the end, and closes.

    A part is sent when the one before has been received, at least in part.
    """
    door = listener(host=host)
    taken = Gate()
    address = door.getsockname()[:2]

    def serve() -> None:
        sock, _ = door.accept()
        while b"\r\n\r\n" not in sock.recv(1 << 16, socket.MSG_PEEK):
            time.sleep(0.001)
        sock.recv(1 << 16)
        sock.sendall(parts[0])
        for part in parts[1:]:
            taken.wait()
            sock.sendall(part)
        time.sleep(0.02)  # the end comes by itself, mostly

    def ask() -> None:
        door.close()
        sock = socket.create_connection(address)
        sock.sendall(request)
        for _ in read_all(sock):
            taken.open()

    server, client = act(serve), act(ask)
    door.close()
    client.wait()
    server.wait()
    return client.pid, watch.of(client.pid)


def play(watch: Watch, parts: tuple[bytes, ...], *how: Any, **more: Any) -> dict[str, int]:
    """The client's facts, as `play_as`."""
    return play_as(watch, parts, *how, **more)[1]


WHOLE = {
    "length": (LENGTH + BODY,),
    "length, in two": (LENGTH, BODY),
    "length, lower case": ((HEAD + b"content-length:1000\r\n\r\n").lower().replace(b"http", b"HTTP") + BODY,),
    "no body": (HEAD + b"Content-Length: 0\r\n\r\n",),
    "chunked": (CHUNKED + b"3e8\r\n" + BODY + b"\r\n0\r\n\r\n",),
    "chunked, its end by itself": (CHUNKED, b"3e8\r\n", BODY + b"\r\n", b"0\r\n", b"\r\n"),
    "chunked, its end in bytes": (CHUNKED, b"3e8\r\n" + BODY + b"\r\n", b"0", b"\r", b"\n", b"\r\n"),
    "chunked, nothing in it": (CHUNKED + b"0\r\n\r\n",),
    "chunked with a trailer": (
        HEAD + b"Trailer: T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: 1\r\n\r\n",
    ),
    "HTTP/1.0, to the end": (b"HTTP/1.0 200 OK\r\nServer: test\r\n\r\n" + BODY,),
    "1.1 without a length, to the end": (HEAD + b"Connection: close\r\n\r\n" + BODY,),
    "304 with the length of what it stands for": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "continue, then length": (b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH + BODY),
    "two responses": (LENGTH + BODY, LENGTH + BODY),
    "900 bytes of head": (HEAD + MANY + b"Content-Length: 1000\r\n\r\n" + BODY,),
    "no HTTP": (b"+OK this is POP3\r\nContent-Length: 1000\r\n\r\n",),
    "upgraded": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", LENGTH + b"frame"),
    "more than a KiB of head": (HEAD + 2 * MANY + b"Content-Length: 1000\r\n\r\n" + BODY[:10],),
}
TRUNCATED = {
    "length": (LENGTH + BODY[:-1],),
    "length, nothing of it": (LENGTH,),
    "length, in parts": (LENGTH, BODY[:300], BODY[:600]),
    "length, lower case": ((HEAD + b"content-length:1000\r\n\r\n").lower().replace(b"http", b"HTTP") + b"b",),
    "chunked in a chunk": (CHUNKED + b"3e8\r\n" + BODY[:500],),
    "chunked between chunks": (CHUNKED + b"3e8\r\n" + BODY + b"\r\n",),
    "chunked, text with lines": (CHUNKED + b"8\r\n0\r\n\r\nab\n\r\n", b"6\r\n0\r\n\r\nx"),
    "chunked, the last byte missing": (CHUNKED + b"3e8\r\n" + BODY + b"\r\n0\r\n\r",),
    "chunked, nothing of it": (CHUNKED.replace(b"test", b"max=100"),),
    "continue, then length": (b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH + BODY[:10]),
    "900 bytes of head": (HEAD + MANY + b"Content-Length: 1000\r\n\r\n" + BODY[:10],),
    "an error": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 20\r\n\r\nupstream",),
}


@pytest.mark.parametrize("case", in_lanes(WHOLE, "chunked, its end in bytes", "continue, then length"))
@pytest.mark.parametrize("read_all", [recv, read], ids=["recv", "read"])
def test_a_whole_response_is_no_drop(watch: Watch, case: str, read_all: Reader) -> None:
    """However it is framed, and wherever it cannot be told."""
    assert play(watch, WHOLE[case], read_all) == OK


@pytest.mark.parametrize("case", in_lanes(TRUNCATED, "chunked in a chunk", "900 bytes of head"))
def test_a_response_cut_short_is_a_drop(watch: Watch, case: str) -> None:
    """The peer closed in order before what it had announced was there; once, by the peer."""
    assert play(watch, TRUNCATED[case]) == CUT


@pytest.mark.parametrize("read_all", [recv, recv_small, read, readv, recvmsg], ids=lambda f: f.__name__)
@pytest.mark.parametrize("host", in_lanes(("127.0.0.1", "::1"), "127.0.0.1"))
def test_however_it_is_read(watch: Watch, read_all: Reader, host: str) -> None:
    """Both kinds of framing, whole and cut, over IPv4 and IPv6."""
    chunks = CHUNKED + b"3e8\r\n" + BODY + b"\r\n"
    assert play(watch, (LENGTH + BODY,), read_all, host=host) == OK
    assert play(watch, (LENGTH + BODY[:-1],), read_all, host=host) == CUT
    assert play(watch, (chunks, b"0\r\n\r\n"), read_all, host=host) == OK
    assert play(watch, (chunks,), read_all, host=host) == CUT


@pytest.mark.lane
def test_read_long_after_it_ended(watch: Watch) -> None:
    """Head, half a body and FIN are there before the client reads any of it: the drop's time is the FIN's."""
    told, tell = os.pipe()

    def late(sock: socket.socket) -> Iterator[None]:
        wait_for_fin(sock)
        time.sleep(LATE_S)
        os.write(tell, b"%d" % time.monotonic_ns())
        yield from recv(sock)

    before_ns = time.monotonic_ns()
    client, facts = play_as(watch, (LENGTH + BODY[:10],), late)
    assert facts == CUT
    (event,) = [e for e in watch.events_of(client) if name_of(e).startswith("drop")]
    read_ns = int(os.read(told, 100))
    assert before_ns < int(event["time_ns"]) < read_ns - LATE_S * 1e9
    for end in (told, tell):
        os.close(end)


@pytest.mark.lane
def test_what_cannot_be_told_is_no_drop(watch: Watch) -> None:
    """Read byte by byte; and a client that asks in something else."""
    assert play(watch, (LENGTH + BODY[:10],), bytewise) == OK
    assert play(watch, (LENGTH + BODY[:10],), request=b"\x16\x03\x01 ClientHello\r\n\r\n") == OK


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_head_requests_have_no_body(watch: Watch, answer: bytes) -> None:
    """The head announces what GET would have brought."""
    assert play(watch, (answer,), request=REQUEST.replace(b"GET", b"HEAD")) == OK


def test_a_receive_of_no_byte_meets_no_end(watch: Watch) -> None:
    """It returns 0 with half of a whole response still to be read behind which the server has closed."""

    def peek(sock: socket.socket) -> Iterator[None]:
        wait_for_fin(sock)
        sock.recv(500)
        assert ctypes.CDLL(None).recv(sock.fileno(), None, 0, 0) == 0  # Python's own makes no call
        yield from recv(sock)

    assert play(watch, (LENGTH + BODY,), peek) == OK


def test_who_gives_up_by_itself_met_no_end(watch: Watch) -> None:
    """A client that closes in the middle: nobody waited for the rest."""

    def half(sock: socket.socket) -> Iterator[None]:
        sock.recv(500)
        yield

    assert play(watch, (LENGTH + BODY[:600],), half) == OK | {"client reset sent": 1}


@pytest.mark.lane
def test_on_a_connection_kept_alive_each_response_is_judged(watch: Watch) -> None:
    """By Python's own client: three whole ones, of which one to HEAD, then one cut short."""
    door = listener()

    def serve() -> None:
        sock, _ = door.accept()
        for answer in (LENGTH + BODY, LENGTH, CHUNKED + b"1\r\nx\r\n0\r\n\r\n", LENGTH + BODY[:1]):
            sock.recv(1 << 16)
            sock.sendall(answer)

    def ask() -> None:
        port = door.getsockname()[1]
        door.close()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for method in ("GET", "HEAD", "GET"):
            connection.request(method, "/")
            connection.getresponse().read()
        connection.request("GET", "/")
        with pytest.raises(http.client.IncompleteRead):
            connection.getresponse().read()

    server, client = act(serve), act(ask)
    door.close()
    client.wait()
    server.wait()
    assert watch.of(client.pid) == CUT


def test_a_reset_after_a_whole_response_is_idle(watch: Watch) -> None:
    """A server that answers in full and then resets: at once, which without HTTP would be a drop."""

    def ask(response: bytes) -> dict[str, int]:
        door = listener()
        done = Gate()

        def serve() -> None:
            sock, _ = door.accept()
            sock.recv(1 << 16)
            sock.sendall(response)
            done.wait()
            abort(sock)

        def client() -> None:
            address = door.getsockname()
            door.close()
            sock = socket.create_connection(address)
            sock.sendall(REQUEST)
            assert read_exactly(sock, len(response)) == response
            done.open()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)

        server, asking = act(serve), act(client)
        door.close()
        asking.wait()
        server.wait()
        return watch.of(asking.pid)

    assert ask(LENGTH + BODY) == OK | {"client reset received idle": 1}
    assert ask(LENGTH + BODY[1:]) == OK | {
        "client reset received": 1,
        "client drop reset_mid_response by peer": 1,
    }


def test_it_can_be_switched_off(agents: Path) -> None:
    """KERNOB_HTTP=false: nothing is looked at, nothing told, and doctor can say why."""
    with watching(agents / "cache", http="false") as watch:
        (report,) = [report for report in watch.session.reports if report.hook == "http"]
        assert report.attempts[0].reason == "switched off: KERNOB_HTTP"
        assert play(watch, (LENGTH + BODY[:10],)) == OK
