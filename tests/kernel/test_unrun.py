# SPDX-License-Identifier: Apache-2.0
"""The witness for playing a case again: events that the kernel counted and no program was run for."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from tcp_watch import abort, act, listener
from unrun import TRACEPOINTS, Unrun

from kernob.errors import KernelError

CONNECTIONS = 20


@pytest.fixture
def unrun() -> Iterator[Unrun]:
    """A count of our own."""
    try:
        found = Unrun()
    except (KernelError, OSError) as error:
        pytest.skip(f"missing feature: perf counters of tracepoints ({error})")
    with found:
        yield found


def connect_and_reset() -> None:
    """Both ends of some connections; each ends with a RST."""
    door = listener()
    for _ in range(CONNECTIONS):
        client = socket.create_connection(door.getsockname())
        server, _ = door.accept()
        abort(client)
        server.close()


@pytest.mark.lane
@pytest.mark.parametrize("attached", [True, False])
def test_what_no_program_was_run_for_is_counted(unrun: Unrun, attached: bool) -> None:
    """With our programs gone it is all; with them there it is less than any of it, and mostly nothing."""
    before = unrun()
    if not attached:
        for link in unrun.links:
            link.detach()
    act(connect_and_reset).wait()
    found = unrun() - before
    ends, changes = 2 * CONNECTIONS, 6 * CONNECTIONS  # SYN_SENT, SYN_RECV, 2 ESTABLISHED, 2 CLOSE
    state, destroyed = TRACEPOINTS[:2]
    if attached:
        assert found[destroyed] < ends
        assert found[state] < changes
        assert found <= Counter(dict.fromkeys(TRACEPOINTS, CONNECTIONS))
    else:
        assert found[destroyed] >= ends
        assert found[state] >= changes
