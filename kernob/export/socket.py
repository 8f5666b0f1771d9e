# SPDX-License-Identifier: Apache-2.0
"""Serves snapshots to screens over a root-only unix socket: JSON lines, versioned, bounded.

Snapshots enter from the agent (a `SnapshotSource`), events from its journal (an `EventSource`); requests
(`kernob.view.Request` or `EventRequest`, one line each) enter from clients, and answers (`kernob.view.View`
or events, one line each) leave to them. The agent creates one
`SnapshotServer`, binds it before anything attaches (so that two agents cannot run on one socket), starts
it once it ticks, and closes it last.

Nothing a client does can hold up the agent: each client has threads of its own, requests are at most
4 KiB, an answer not taken within the send timeout ends that client, and there are at most 16 of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from kernob.answer import encode_answer
from kernob.errors import ConfigError, PreconditionError
from kernob.export.event_answers import EventSource, answer
from kernob.model import Pulse, Snapshot
from kernob.view import (
    MAX_REQUEST_BYTES,
    EventRequest,
    ReportRequest,
    Request,
    decode_request,
    encode_pulse,
    encode_refusal,
    encode_report,
)

_log = logging.getLogger(__name__)

MAX_CLIENTS = 16
SEND_TIMEOUT_S = 5.0
FIRST_REQUEST_TIMEOUT_S = 10.0
CLOSE_PATIENCE_S = 0.5
MIN_ANSWER_GAP_S = 0.05
"""A client that sends one query after the other is answered at most 20 times a second."""
_NO_THREAD = "the agent may start no more threads (the limit of its container's or unit's tasks)"
_MAX_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) less the final NUL, unix(7)
_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred, unix(7)


class SnapshotSource(Protocol):
    """What the server asks of the agent, from client threads."""

    def subscribe(self, interval_s: float) -> Generator[Snapshot, None, None]:
        """Make the agent tick at least every `interval_s`, and yield what each tick from now on found.

        The generator returns once the agent ends. One that is advanced too slowly may skip ticks and must
        not hold up the agent; one that is closed no longer hastens it.
        """

    def pulse(self) -> Pulse:
        """Say how long ago the last tick ended; must not wait for one."""

    def report(self, name: str, words: Mapping[str, str]) -> Mapping[str, Any]:
        """Answer a feature's question. Raises ValueError, one line, where it makes no sense."""


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the process at the other end, as the kernel noted them (SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    return int(pid), int(uid)


class SnapshotServer:
    """The listening socket and its clients.

    `peer_uid` is injected by tests; only uid 0 and the agent's own may ask.
    """

    def __init__(
        self,
        path: Path,
        source: SnapshotSource,
        *,
        events: EventSource | None = None,
        send_timeout_s: float = SEND_TIMEOUT_S,
        first_request_timeout_s: float = FIRST_REQUEST_TIMEOUT_S,
        peer_uid: Callable[[socket.socket], int] = lambda connection: peer_credentials(connection)[1],
    ) -> None:
        self._path = path
        self._source = source
        self._events = events
        self._send_timeout_s = send_timeout_s
        self._first_request_timeout_s = first_request_timeout_s
        self._peer_uid = peer_uid
        self._listener: socket.socket | None = None
        self._inode = (0, 0)
        self._closing = threading.Event()
        self._clients: set[_Client] = set()
        self._clients_lock = threading.Lock()
        self._accept_thread: threading.Thread | None = None

    def __enter__(self) -> SnapshotServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def client_count(self) -> int:
        """How many clients are being served now."""
        with self._clients_lock:
            return len(self._clients)

    def bind(self) -> None:
        """Take the socket path: 0600 in a directory only root may write, replacing a stale file.

        Raises PreconditionError where another agent serves it or the system refuses, ConfigError where
        the path cannot be used.
        """
        if len(os.fsencode(self._path)) > _MAX_PATH_BYTES:
            raise ConfigError(f"KERNOB_SOCKET={self._path} is too long: at most {_MAX_PATH_BYTES} bytes")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _prepare_directory(self._path.parent)
            with _locked(self._path.parent):
                _remove_stale(self._path)
                listener.bind(os.fspath(self._path))
                # Nobody can connect before listen(), so the mode is narrowed in time, whatever the umask.
                self._path.chmod(0o600)
                found = self._path.lstat()
                self._inode = (found.st_dev, found.st_ino)
                listener.listen(MAX_CLIENTS)
        except OSError as error:
            listener.close()
            raise PreconditionError(f"cannot serve snapshots on {self._path}: {error.strerror}") from error
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    def start(self) -> None:
        """Begin to answer clients (binds first where `bind` was not called)."""
        if self._listener is None:
            self.bind()
        self._accept_thread = threading.Thread(target=self._accept, name="kernob-socket", daemon=True)
        self._accept_thread.start()

    def close(self) -> None:
        """Stop answering, end all clients and remove the socket file, if it is still ours."""
        self._closing.set()
        if self._listener is not None:
            with contextlib.suppress(FileNotFoundError):
                found = self._path.lstat()
                if (found.st_dev, found.st_ino) == self._inode:
                    self._path.unlink()
            with contextlib.suppress(OSError):  # wakes accept(); refused where nothing waits in it
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if self._accept_thread is not None:
            self._accept_thread.join(timeout=1.0)
        with self._clients_lock:
            clients = list(self._clients)
        for client in clients:
            client.hang_up()
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        for client in clients:
            client.thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and not self._closing.is_set():
            try:
                connection, _address = listener.accept()
            except OSError as error:
                if self._closing.wait(timeout=0.2):  # also keeps EMFILE from becoming a busy loop
                    return
                _log.warning("cannot accept a client on %s: %s", self._path, error.strerror)
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.settimeout(self._send_timeout_s)
        uid = self._peer_uid(connection)
        pulse: Pulse | None = None
        with self._clients_lock:
            if uid not in {0, os.geteuid()}:
                reason = f"uid {uid} may not read this agent's snapshots"
            elif len(self._clients) >= MAX_CLIENTS:
                reason = f"{MAX_CLIENTS} clients are connected already"
                pulse = self._source.pulse()
            else:
                client = _Client(
                    connection, self._source, self._events, self._forget, self._first_request_timeout_s
                )
                try:
                    client.thread.start()
                except RuntimeError:  # accepting must go on
                    reason = _NO_THREAD
                    pulse = self._source.pulse()
                else:
                    self._clients.add(client)
                    return
        _log.warning("refused a client: %s", reason)
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(encode_refusal(reason, pulse) + b"\n")

    def _forget(self, client: _Client) -> None:
        with self._clients_lock:
            self._clients.discard(client)


class _Client:
    """One connection: a thread reads its requests, a second one (once asked) sends a view per tick."""

    def __init__(
        self,
        connection: socket.socket,
        source: SnapshotSource,
        events: EventSource | None,
        forget: Callable[[_Client], None],
        first_request_timeout_s: float,
    ) -> None:
        self._connection = connection
        self._source = source
        self._events = events
        self._forget = forget
        self._first_request_timeout_s = first_request_timeout_s
        self._gone = threading.Event()
        self._lock = threading.Lock()  # guards the two below and keeps answers whole
        self._request = Request()
        self._snapshot: Snapshot | None = None
        self._pump: threading.Thread | None = None
        self.thread = threading.Thread(target=self._read, name="kernob-client", daemon=True)

    def hang_up(self) -> None:
        """End the connection from another thread; both threads notice."""
        self._gone.set()
        with contextlib.suppress(OSError):  # the client may have closed it already
            self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            for line in self._lines():
                request = decode_request(line)
                if isinstance(request, EventRequest):
                    answer(self._connection, self._events, request, self._gone)
                    return
                if isinstance(request, ReportRequest):
                    document = self._source.report(request.name, request.words)
                    self._connection.sendall(encode_report(document) + b"\n")
                    return
                if request.want == "pulse":
                    self._connection.sendall(encode_pulse(self._source.pulse()) + b"\n")
                    return
                if request.want == "once":
                    self._answer_once(request)
                    return
                self._answer_from_now_on(request)
                if self._gone.wait(timeout=MIN_ANSWER_GAP_S):
                    return
        except ValueError as error:
            with contextlib.suppress(OSError):
                self._connection.sendall(encode_refusal(str(error)) + b"\n")
        except OSError as error:
            _log.debug("a client was dropped: %s", error)
        finally:
            self.hang_up()
            if self._pump is not None:
                self._pump.join()
            self._connection.close()
            self._forget(self)

    def _lines(self) -> Iterator[bytes]:
        """Yield requests; of several that arrived together only the last, for only it still matters.

        Raises ValueError for a line beyond 4 KiB, TimeoutError where the first one does not come.
        """
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        buffer = b""
        while not self._gone.is_set():
            # An idle screen may stay silent for ever; one that never asked for anything may not.
            patience_ms = None if self._pump is not None else self._first_request_timeout_s * 1000
            if not poller.poll(patience_ms):
                raise TimeoutError("no request came")
            received = self._connection.recv(MAX_REQUEST_BYTES)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            if len(buffer) > MAX_REQUEST_BYTES or any(len(line) > MAX_REQUEST_BYTES for line in lines):
                raise ValueError(f"not a valid request: longer than {MAX_REQUEST_BYTES} bytes")
            if lines:
                yield lines[-1]

    def _answer_once(self, request: Request) -> None:
        # Not from the last tick: the agent only lists flows while somebody watches.
        with contextlib.closing(self._source.subscribe(request.interval_s)) as subscription:
            for snapshot in subscription:
                self._connection.sendall(encode_answer(snapshot, request) + b"\n")
                return

    def _answer_from_now_on(self, request: Request) -> None:
        with self._lock:
            self._request = request
            if self._snapshot is not None:
                self._connection.sendall(encode_answer(self._snapshot, request) + b"\n")
        if self._pump is None:
            pump = threading.Thread(target=self._push, name="kernob-client-push", daemon=True)
            try:
                pump.start()
            except RuntimeError:
                raise ValueError(_NO_THREAD) from None
            self._pump = pump

    def _push(self) -> None:
        subscription = self._source.subscribe(self._request.interval_s)
        try:
            for snapshot in subscription:
                with self._lock:
                    if self._gone.is_set():
                        return
                    if self._request.hold and self._snapshot is not None:
                        continue
                    self._snapshot = snapshot
                    self._connection.sendall(encode_answer(snapshot, self._request) + b"\n")
        except OSError as error:
            _log.debug("a client was dropped: %s", error)
        finally:
            subscription.close()
            self.hang_up()


def _prepare_directory(directory: Path) -> None:
    """Create the directory as 0700, or check that nobody else may write into an existing one."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = directory.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"KERNOB_SOCKET: {directory} is not a directory") from None
        if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"KERNOB_SOCKET: others may write into {directory}; choose a directory that only root "
                "may write, such as /run/kernob"
            ) from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's advisory lock, so that two agents starting at once cannot both win."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        patience = Retrying(
            retry=retry_if_exception_type(BlockingIOError),
            stop=stop_after_delay(2),
            wait=wait_fixed(0.05),
            reraise=True,
        )
        patience(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a socket file nobody listens on. Raises where it is anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(
            f"KERNOB_SOCKET: {path} exists and is not a socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        # EAGAIN says that its queue is full: somebody listens, and is busy.
        result = probe.connect_ex(os.fspath(path))
        if result in {0, errno.EAGAIN}:
            holder = f" (pid {peer_credentials(probe)[0]})" if result == 0 else ""
            raise PreconditionError(
                f"another kernob agent{holder} already serves {path}: "
                "stop it, or set KERNOB_SOCKET to another path"
            )
    path.unlink()
