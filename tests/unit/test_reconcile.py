# SPDX-License-Identifier: Apache-2.0
"""state.reconcile and kernel.proc_sockets: open connections here and in /proc, and their differences."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernob.kernel.proc_sockets import ProcSocket, ProcSockets, ends_of
from kernob.state.connections import ESTABLISHED, Names
from kernob.state.reconcile import EVERY_S, Reconciler, ends_of_rows
from tests.unit.proc_tree import HOST_NETNS, OTHER_NETNS, add_process, own_netns
from tests.unit.records import SOCK_VAL

A, B = bytes((10, 0, 0, 1)), bytes((192, 0, 2, 7))
A6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
HEADING = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
)


def table(*rows: tuple[str, str, str, int]) -> bytes:
    """Write a /proc/net/tcp of (local, remote, state, inode)."""
    zero = "00000000:00000000 00:00000000 00000000     0        0"
    lines = (
        f"   {n}: {local} {remote} {state} {zero} {inode} 1 0 20\n"
        for n, (local, remote, state, inode) in enumerate(rows)
    )
    return HEADING + "".join(lines).encode()


def open_socket(port: int, inode: int = 1, netns: int = HOST_NETNS) -> ProcSocket:
    return ProcSocket(netns, A, port, B, 443, ESTABLISHED, inode)


def row(port: int, pid: int = 100, state: int = ESTABLISHED, opened_ns: int = 1) -> NDArray[Any]:
    """One entry of the map, of the connection that `open_socket(port)` is."""
    value = np.zeros(1, SOCK_VAL)
    value["key"]["tgid"], value["key"]["netns"], value["key"]["family"] = pid, HOST_NETNS, 2
    value["key"]["peer"][0, :4], value["local"][0, :4] = list(B), list(A)
    value["sport"], value["dport"], value["state"], value["opened_ns"] = port, 443, state, opened_ns
    return value


def rows(*each: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(addresses, rows), the address being 1000 + port."""
    joined = np.concatenate(each) if each else np.zeros(0, SOCK_VAL)
    return 1000 + joined["sport"].astype(np.uint64), joined


class Naming:
    """Names every socket after its inode, and remembers what it was asked."""

    def __init__(self, *unknown: int) -> None:
        self.asked: list[list[int]] = []
        self._unknown = unknown

    def __call__(self, sockets: Collection[Any]) -> dict[int, Names]:
        inodes = [socket.inode for socket in sockets]
        self.asked.append(sorted(inodes))
        return {inode: name(inode) for inode in inodes if inode not in self._unknown}


def name(inode: int) -> Names:
    return (("kernob.service", f"s{inode}"),), ()


def test_tables_of_every_namespace_are_read(tmp_path: Path) -> None:
    """ESTABLISHED and CLOSE_WAIT of v4, v6 and v4-mapped, once a namespace; other states are left out."""
    add_process(
        tmp_path,
        1,
        netns=f"net:[{HOST_NETNS}]",
        net_tcp=table(
            ("0100000A:0016", "070200C0:D431", "01", 11),
            ("0100000A:0017", "070200C0:D432", "08", 12),
            ("0100000A:0018", "070200C0:D433", "0A", 13),
            ("0100000A:0019", "070200C0:D434", "06", 0),
        ),
        net_tcp6=table(
            ("0000000000000000FFFF00000100000A:0020", "0000000000000000FFFF0000070200C0:0021", "01", 14),
            ("B80D0120000000000000000001000000:0022", "B80D0120000000000000000001000000:0023", "01", 15),
        ),
    )
    add_process(
        tmp_path, 2, netns=f"net:[{HOST_NETNS}]", net_tcp=table(("0100000A:0001", "0100000A:0001", "01", 1))
    )
    add_process(tmp_path, 3, netns=f"net:[{OTHER_NETNS}]", net_tcp=table())
    found, visible = ProcSockets(tmp_path / "proc").active()
    assert [(s.inode, s.state, s.local_port, s.peer_port) for s in found] == [
        (11, 1, 0x16, 0xD431),
        (12, 8, 0x17, 0xD432),
        (14, 1, 0x20, 0x21),
        (15, 1, 0x22, 0x23),
    ]
    assert found[0].ends == ends_of(HOST_NETNS, A, 0x16, B, 0xD431)
    assert found[2].ends == ends_of(HOST_NETNS, A, 0x20, B, 0x21)
    assert found[3].ends == ends_of(HOST_NETNS, A6, 0x22, A6, 0x23)
    assert visible == {HOST_NETNS, OTHER_NETNS}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_our_own_connection_is_found_with_its_holder(family: socket.AddressFamily) -> None:
    """On the running kernel: both ends of a connection, by name and by inode."""
    with socket.create_server(("", 0), family=family) as listener:
        port = listener.getsockname()[1]
        loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_connection((loopback, port)) as client, listener.accept()[0] as server:
            found, visible = ProcSockets(Path("/proc")).active()
            assert own_netns() in visible
            raw = socket.inet_pton(family, loopback)
            by_ends = {each.ends: each for each in found}
            for one, ours, theirs in (
                (client, client.getsockname()[1], port),
                (server, port, client.getsockname()[1]),
            ):
                there = by_ends[ends_of(own_netns(), raw, ours, raw, theirs)]
                assert there.inode == os.fstat(one.fileno()).st_ino
                assert ProcSockets(Path("/proc")).holders({there.inode}) == {there.inode: os.getpid()}


def test_rows_and_tables_name_connections_alike() -> None:
    """An entry of the map and the line in /proc of one connection have the same name."""
    assert ends_of_rows(row(51234)) == [open_socket(51234).ends]


def test_what_is_in_both_needs_nothing() -> None:
    """An owned entry with its socket is neither foreign nor stale, and nobody is asked for its holder."""
    reconciler, naming = Reconciler(), Naming()
    for _ in range(3):
        assert (
            reconciler.sweep(*rows(row(1), row(2)), [open_socket(1), open_socket(2)], {HOST_NETNS}, naming)
            == []
        )
    assert (reconciler.foreign(), naming.asked) == ({}, [])


def test_an_entry_without_a_socket_is_stale_at_the_second_sweep() -> None:
    """Missing once may be bad luck; missing twice is stale. Another connection on the memory begins anew."""
    reconciler, naming = Reconciler(), Naming()
    assert reconciler.sweep(*rows(row(1), row(2)), [open_socket(1)], {HOST_NETNS}, naming) == []
    assert reconciler.sweep(*rows(row(2, opened_ns=9)), [], {HOST_NETNS}, naming) == []
    (stale,) = reconciler.sweep(*rows(row(2, opened_ns=9)), [], {HOST_NETNS}, naming)
    assert (stale.address, int(stale.row[0]["sport"])) == (1002, 2)


def test_what_cannot_be_seen_is_not_stale() -> None:
    """No verdict in a namespace that no process is in, on an entry whose port is unknown, or not active."""
    reconciler = Reconciler()
    for _ in range(3):
        assert reconciler.sweep(*rows(row(2)), [], {OTHER_NETNS}, Naming()) == []
        assert reconciler.sweep(*rows(row(0), row(3, state=4)), [], {HOST_NETNS}, Naming()) == []


def test_foreign_connections_are_named_once() -> None:
    """Older than the agent, or accepted and unused: counted by their holder, who is sought only once."""
    reconciler, naming = Reconciler(), Naming(7)
    for _ in range(2):
        found = [open_socket(1, 5), open_socket(2, 6), open_socket(3, 7), open_socket(4, 0)]
        reconciler.sweep(*rows(row(2, pid=0)), found, {HOST_NETNS}, naming)
    assert reconciler.foreign() == {name(5): 1, name(6): 1}
    assert naming.asked == [[5, 6, 7]]


def test_between_sweeps_foreign_connections_close_and_find_owners() -> None:
    """With an entry they end with it or when it is owned; without one, when an owned entry appears."""
    reconciler = Reconciler()
    found = [open_socket(port, port) for port in (1, 2, 3, 4)]
    reconciler.sweep(*rows(row(2, pid=0), row(3, pid=0)), found, {HOST_NETNS}, Naming())
    reconciler.between(rows(row(2, pid=0), row(3, pid=0))[1])
    assert len(reconciler.foreign()) == 4
    reconciler.between(rows(row(2, pid=100), row(4, pid=100))[1])
    assert reconciler.foreign() == {name(1): 1}


def test_doubt_brings_the_next_sweep_forward_as_far_as_it_is_cheap() -> None:
    """Once a minute; after 5 s where something is open; but never more than 1 % of the time."""
    reconciler = Reconciler()
    assert reconciler.due(0.0)
    reconciler.sweep(*rows(row(1)), [open_socket(1)], {HOST_NETNS}, Naming())
    reconciler.swept(100.0, 0.01)
    assert not reconciler.due(100.0 + EVERY_S - 1)
    assert reconciler.due(100.0 + EVERY_S)
    for took_s, pause_s in ((0.01, 5.0), (0.2, 20.0), (3.0, EVERY_S)):
        reconciler.sweep(*rows(), [open_socket(1)], {HOST_NETNS}, Naming())
        reconciler.swept(200.0, took_s)
        assert (reconciler.due(200.0 + pause_s - 0.1), reconciler.due(200.0 + pause_s)) == (False, True)


def test_an_entry_without_owner_brings_the_next_sweep_forward() -> None:
    """Accepted since the last sweep and not used yet: its holder is sought after 5 s, not after a minute."""
    reconciler = Reconciler()
    reconciler.sweep(*rows(), [], {HOST_NETNS}, Naming())
    reconciler.swept(100.0, 0.01)
    reconciler.between(row(1))
    assert not reconciler.due(106.0)
    reconciler.between(row(2, pid=0))
    assert (reconciler.due(104.9), reconciler.due(105.0)) == (False, True)
    reconciler.sweep(*rows(row(2, pid=0)), [open_socket(2)], {HOST_NETNS}, Naming())
    reconciler.swept(105.0, 0.01)
    reconciler.between(row(2, pid=0))
    assert not reconciler.due(150.0)
