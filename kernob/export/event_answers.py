# SPDX-License-Identifier: Apache-2.0
"""Answers to clients that ask for events: one line each, oldest first, once or for as long as they stay.

Enters: an `EventRequest` and the agent's journal. Leaves: lines on a client's connection. Called by `socket`,
in the client's thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Generator
from typing import Protocol

from kernob.model import Event, EventQuery
from kernob.view import EventRequest, encode_event, encode_events_end


class EventSource(Protocol):
    """What the server asks of the journal, from client threads."""

    def query(self, query: EventQuery) -> Generator[list[Event], None, None]:
        """Yield what the query asks for, oldest first, in pages."""

    def follow(self, query: EventQuery) -> Generator[list[Event], None, None]:
        """Yield the same, then events as they come, and an empty list now and then; end with the agent.

        Raises ValueError for a reader that is too slow.
        """


def answer(
    connection: socket.socket, source: EventSource | None, request: EventRequest, gone: threading.Event
) -> None:
    """Answers once, or goes on until the client hangs up, `gone` is set or the agent ends.

    Raises ValueError where there is nothing to answer with, OSError where the client does not take it.
    """
    if source is None:
        raise ValueError("this agent keeps no events")
    if not request.follow:
        for page in source.query(request.query):
            _send(connection, page)
        connection.sendall(encode_events_end() + b"\n")
        return
    poller = select.poll()
    poller.register(connection, select.POLLIN | select.POLLRDHUP)
    with contextlib.closing(source.follow(request.query)) as batches:
        for events in batches:
            if poller.poll(0) or gone.is_set():
                return
            _send(connection, events)


def _send(connection: socket.socket, events: list[Event]) -> None:
    connection.sendall(b"".join(encode_event(event) + b"\n" for event in events))
