# SPDX-License-Identifier: Apache-2.0
"""Where a screen's views come from: a running agent over its socket, or an agent in this process.

Views (`kernob.view.View`) leave, requests (`kernob.view.Request`) enter. `ui.top` and `doctor` call this;
to both kinds of feed they speak the same way. A feed is iterated by one thread; `ask` and `close` may
come from another.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kernob.answer import select as select_view
from kernob.errors import AgentUnreachableError, KernelError, KernobError, PreconditionError
from kernob.model import Snapshot
from kernob.view import (
    MAX_VIEW_BYTES,
    Refusal,
    Request,
    View,
    decode_answer,
    decode_report,
    encode_report_request,
    encode_request,
)

CONNECT_TIMEOUT_S = 2.0
GRACE_S = 10.0
"""An agent that is this much later than the interval asked for counts as gone."""
_CHUNK_BYTES = 256 * 1024
REPORT_TIMEOUT_S = 15.0
_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred, unix(7)


class Feed(Protocol):
    """Views, one per interval, and one at once whenever the query changes after the first."""

    def views(self) -> Iterator[View]:
        """Yield views until the feed is closed. Raises AgentUnreachableError when the agent goes away."""

    def ask(self, request: Request) -> None:
        """Change the query, or hold (pause) the snapshot shown last."""

    def close(self) -> None:
        """End `views()`, also while it waits in another thread."""


class SocketFeed:
    """The feed of a running agent.

    The constructor connects and raises AgentUnreachableError where nothing listens on `path`, and
    PreconditionError where this user may not connect, or where the socket is not root's (nor ours):
    whatever listens there then is not to be believed.
    """

    def __init__(self, path: Path, request: Request, *, grace_s: float = GRACE_S) -> None:
        self._path = path
        self._request = request
        self._grace_s = grace_s
        self._closed = threading.Event()
        self._socket = open_socket(path)
        self._send(request)

    def ask(self, request: Request) -> None:
        """Send another query; the interval stays the one of the first request."""
        self._request = request
        self._send(request)

    def close(self) -> None:
        """Hang up; a thread waiting in `views()` returns."""
        self._closed.set()
        with contextlib.suppress(OSError):  # the agent may have hung up before us
            self._socket.shutdown(socket.SHUT_RDWR)

    def views(self) -> Iterator[View]:
        """Yield every view the agent sends; return after `close()`, or after the answer to "once"."""
        try:
            with self._socket:
                for line in self._lines():
                    yield self._view(line)
        except OSError as error:
            if not self._closed.is_set():
                raise AgentUnreachableError(
                    f"the agent on {self._path} went away: {error.strerror}"
                ) from error

    def _send(self, request: Request) -> None:
        # Whatever is wrong with the connection, views() meets it too, and says it once.
        with contextlib.suppress(OSError):
            self._socket.sendall(encode_request(request) + b"\n")

    def _lines(self) -> Iterator[bytes]:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        parts: list[bytes] = []
        size_bytes = 0
        heard_at_s = time.monotonic()
        while not self._closed.is_set():
            if not poller.poll(1000 * min(1.0, self._grace_s)):
                silent_s = time.monotonic() - heard_at_s
                # A paused agent says nothing, and that is right.
                if not self._request.hold and silent_s > self._request.interval_s + self._grace_s:
                    raise AgentUnreachableError(f"the agent on {self._path} is silent for {silent_s:.0f} s")
                continue
            received = self._socket.recv(_CHUNK_BYTES)
            heard_at_s = time.monotonic()
            if not received:
                if self._closed.is_set() or self._request.want == "once":
                    return
                raise AgentUnreachableError(f"the agent on {self._path} went away")
            *lines, rest = received.split(b"\n")
            for line in lines:
                yield b"".join([*parts, line])
                parts, size_bytes = [], 0
            parts.append(rest)
            size_bytes += len(rest)
            if size_bytes > MAX_VIEW_BYTES:
                raise AgentUnreachableError(f"the agent on {self._path} sent more than 32 MiB in one line")

    def _view(self, line: bytes) -> View:
        try:
            answer = decode_answer(line)
        except ValueError as error:
            raise AgentUnreachableError(f"cannot read the agent on {self._path}: {error}") from error
        if isinstance(answer, Refusal):
            raise AgentUnreachableError(f"the agent on {self._path} refused: {answer.error}")
        return answer


class SnapshotStream(Protocol):
    """What a feed asks of an agent in this process; `kernob.agent.Agent` is one."""

    @property
    def failure(self) -> Exception | None:
        """Why the agent ended, None where it was asked to."""

    def subscribe(self, interval_s: float) -> Generator[Snapshot, None, None]:
        """Yield a snapshot per tick until the agent ends."""


class LocalFeed:
    """The feed of an agent in this process: a thread follows the agent, the reader selects.

    `views` raises KernelError where the agent ends by a failure.
    """

    def __init__(self, agent: SnapshotStream, request: Request) -> None:
        self._agent = agent
        self._request = request
        self._snapshot: Snapshot | None = None
        self._version = 0
        self._seen = 0
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._follow, name="kernob-feed", daemon=True).start()

    def ask(self, request: Request) -> None:
        """Change the query; `views()` answers at once from the snapshot it has."""
        with self._changed:
            self._request = request
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End `views()`; the agent itself belongs to whoever made it."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def views(self) -> Iterator[View]:
        """Yield a view per snapshot and per query."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news)
                if self._agent.failure is not None:
                    reason = self._agent.failure
                    raise KernelError(f"the agent stopped: {reason}") from reason
                if self._ended:
                    return
                self._seen, snapshot, request = self._version, self._snapshot, self._request
            if snapshot is not None:
                yield select_view(snapshot, request)

    def _has_news(self) -> bool:
        return self._ended or (self._snapshot is not None and self._version != self._seen)

    def _follow(self) -> None:
        try:
            for snapshot in self._agent.subscribe(self._request.interval_s):
                with self._changed:
                    if self._ended:
                        return
                    if self._request.hold and self._snapshot is not None:
                        continue
                    self._snapshot = snapshot
                    self._version += 1
                    self._changed.notify_all()
        finally:
            self.close()


def connect(path: Path, request: Request | None = None) -> Generator[View, None, None]:
    """Yield the views of the agent on `path`. Raises AgentUnreachableError, PreconditionError."""
    feed = SocketFeed(path, request or Request())
    try:
        yield from feed.views()
    finally:
        feed.close()


def fetch_once(path: Path, request: Request | None = None) -> View:
    """Return one view, after one interval. Raises AgentUnreachableError, PreconditionError."""
    query = request or Request(want="once")
    for view in connect(path, query):
        return view
    raise AgentUnreachableError(f"the agent on {path} ended before it answered")


def fetch_report(path: Path, name: str, words: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a feature's document. Raises AgentUnreachableError, PreconditionError, KernobError (refused)."""
    with open_socket(path) as connection:
        connection.settimeout(REPORT_TIMEOUT_S)
        try:
            # An agent that has hung up already may have said why: reading tells.
            with contextlib.suppress(ConnectionError):
                connection.sendall(encode_report_request(name, words or {}) + b"\n")
            parts: list[bytes] = []
            while received := connection.recv(_CHUNK_BYTES):
                parts.append(received)
        except OSError as error:
            raise AgentUnreachableError(f"the agent on {path} does not answer: {error}") from error
    try:
        answer = decode_report(b"".join(parts).partition(b"\n")[0])
    except ValueError as error:
        raise AgentUnreachableError(f"cannot read the agent on {path}: {error}") from error
    if isinstance(answer, Refusal):
        raise KernobError(f"the agent on {path} refused: {answer.error}")
    return answer


def agent_listens(path: Path) -> bool:
    """Say whether an agent runs there. Raises where one does but does not answer, or may not be asked."""
    try:
        open_socket(path).close()
    except AgentUnreachableError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
            return False
        raise
    return True


def open_socket(path: Path) -> socket.socket:
    """Return a connection to the agent. Raises AgentUnreachableError, PreconditionError (see SocketFeed)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect(os.fspath(path))
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except PermissionError as error:
        connection.close()
        raise PreconditionError(f"no permission to open the agent's socket {path}: run as root") from error
    except OSError as error:
        connection.close()
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            reason += " (none runs: start kernob run; or it has another --socket)"
        raise AgentUnreachableError(f"no agent answers on {path}: {reason}") from error
    _pid, uid, _gid = _UCRED.unpack(raw)
    if uid not in {0, os.geteuid()}:
        connection.close()
        raise PreconditionError(f"{path} is served by uid {uid}, neither root nor you: not believed")
    return connection
