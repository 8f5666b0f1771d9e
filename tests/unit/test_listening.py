# SPDX-License-Identifier: Apache-2.0
"""kernel.listening, features.places and derive.translation: who answers where, on a made-up /proc."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kernob.derive.topology import Dial, Reached
from kernob.derive.translation import translations
from kernob.features.places import PlaceWatch
from kernob.kernel.listening import Listening, ListeningSocket, Namespaces, forward_of
from kernob.kernel.proc_sockets import ProcSockets
from tests.unit.records import SOCK_VAL

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TRIE = """Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.0.0.5
        /32 host LOCAL
     |-- 172.17.0.1
        /32 host LOCAL
     |-- 172.17.255.255
        /32 link BROADCAST
"""
ROUTES = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
)


def row(local: str, state: str, inode: int) -> str:
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"


def make_process(root: Path, pid: int, netns: int, tcp: str = "", tcp6: str = "", trie: str = TRIE) -> None:
    net = root / str(pid) / "net"
    net.mkdir(parents=True)
    (root / str(pid) / "ns").mkdir()
    (root / str(pid) / "ns" / "net").symlink_to(f"net:[{netns}]")
    (net / "tcp").write_text(HEAD + tcp)
    (net / "tcp6").write_text(HEAD + tcp6)
    (net / "fib_trie").write_text(trie)
    (net / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "20010db8000000000000000000000005 02 40 00 80     eth0\n"
        "fe800000000000000000000000000001 02 40 20 80     eth0\n"
    )
    (net / "route").write_text(ROUTES)


def test_every_namespace_is_read_once(tmp_path: Path) -> None:
    """Listeners with their addresses, local addresses, and those by which others know this host."""
    ports = row("0100007F:1538", "0A", 11) + row("00000000:0016", "0A", 12) + row("0100007F:0050", "01", 13)
    six = row("00000000000000000000000000000000:0050", "0A", 14)
    make_process(tmp_path, 1, 7, ports, six)
    make_process(tmp_path, 2, 7, row("00000000:FFFF", "0A", 99))
    make_process(tmp_path, 3, 8, row("020011AC:18EB", "0A", 15), trie="|-- 172.17.0.2\n /32 host LOCAL\n")
    found = Listening(tmp_path).read()
    assert set(found.listening) == {
        ListeningSocket(7, "127.0.0.1", 5432, 11),
        ListeningSocket(7, "0.0.0.0", 22, 12),
        ListeningSocket(7, "::", 80, 14),
        ListeningSocket(8, "172.17.0.2", 6379, 15),
    }
    assert {"127.0.0.1", "10.0.0.5", "172.17.0.1", "2001:db8::5", "::1"} <= found.addresses[7]
    assert "172.17.255.255" not in found.addresses[7]
    assert found.own == {"10.0.0.5", "2001:db8::5"}  # no loopback, no container bridge, no link-local
    assert found.host == 7


def test_of_the_own_namespace_only(tmp_path: Path) -> None:
    """Where it is a host of its own: no other is looked at, also not the first process's."""
    make_process(tmp_path, 1, 7, row("00000000:0016", "0A", 12))
    make_process(tmp_path, os.getpid(), 8, row("00000000:0050", "0A", 13))
    found = Listening(tmp_path, own_only=True).read()
    assert found.listening == (ListeningSocket(8, "0.0.0.0", 80, 13),)
    assert set(found.addresses) == {8}
    assert found.host == 8


def test_what_is_broken_or_gone_is_left_out(tmp_path: Path) -> None:
    """A process that ended, a table cut short, a line of nonsense."""
    make_process(tmp_path, 1, 7, "nonsense\n")
    (tmp_path / "5").mkdir()
    make_process(tmp_path, 9, 9, trie="")
    assert Listening(tmp_path).read().listening == ()
    assert Listening(tmp_path).command_line(12345) == ()


@pytest.mark.parametrize(
    ("arguments", "forward"),
    [
        ("/usr/bin/docker-proxy -proto tcp -container-ip 172.17.0.2 -container-port 80", ("172.17.0.2", 80)),
        ("docker-proxy --container-ip fd00::2 --container-port 443", ("fd00::2", 443)),
        ("docker-proxy -container-ip nonsense -container-port 80", None),
        ("docker-proxy", None),
        ("nginx -container-ip 172.17.0.2 -container-port 80", None),
    ],
)
def test_where_a_docker_proxy_leads(arguments: str, forward: tuple[str, int] | None) -> None:
    """Its command line says so; a word that only looks like it does not."""
    assert forward_of(tuple(arguments.split())) == forward


class Sockets:
    """Who holds a socket: the process of the same number."""

    def holders(self, inodes: Collection[int]) -> dict[int, int]:
        return {inode: inode for inode in inodes}

    def command_line(self, pid: int) -> tuple[str, ...]:
        return ("docker-proxy", "-container-ip", "172.17.0.2", "-container-port", "80") if pid == 2 else ()


SERVICES = {1: "sshd", 2: "docker-proxy", 3: "web", 4: "db", 5: "pgbouncer"}


def watch(*listening: ListeningSocket) -> PlaceWatch:
    places = PlaceWatch(Sockets(), Sockets(), SERVICES.__getitem__)  # type: ignore[arg-type]
    places.take(namespaces(*listening))
    return places


def namespaces(*listening: ListeningSocket) -> Namespaces:
    addresses = {7: frozenset({"127.0.0.1", "10.0.0.5", "172.17.0.1"}), 8: frozenset({"172.17.0.2"})}
    return Namespaces(listening, addresses, frozenset({"10.0.0.5"}), 7)


ALL = (
    ListeningSocket(7, "0.0.0.0", 22, 1),
    ListeningSocket(7, "0.0.0.0", 8080, 2),
    ListeningSocket(8, "0.0.0.0", 80, 3),
    ListeningSocket(7, "127.0.0.1", 5432, 4),
)


def test_other_hosts_are_told_who_is_behind_a_published_port() -> None:
    """Not docker-proxy; nothing of a container's own address or of the loopback."""
    assert watch(*ALL).announced == (("sshd", "10.0.0.5", 22), ("web", "10.0.0.5", 8080))


def test_a_listener_that_ends_is_remembered_until_another_comes() -> None:
    """Whoever is refused meanwhile meant it."""
    places = watch(*ALL)
    places.take(namespaces(*ALL[:3]))
    assert places.changed
    gone = places.places.listener(7, "127.0.0.1", 5432)
    assert gone is not None
    assert gone.service == "db"
    places.take(namespaces(*ALL[:3], ListeningSocket(7, "127.0.0.1", 5432, 5)))
    now = places.places.listener(7, "127.0.0.1", 5432)
    assert now is not None
    assert now.service == "pgbouncer"


def test_who_is_not_found_at_once_is_looked_for_a_few_times() -> None:
    """Although nothing changed; then only as often as everything is. One that has no holder costs no more."""
    late, never = ListeningSocket(7, "127.0.0.1", 5432, 4), ListeningSocket(7, "127.0.0.1", 2049, 9)
    holders: dict[int, int] = {}
    looks: list[float] = []
    now_s = 0.0

    def read() -> Namespaces:
        looks.append(now_s)
        return namespaces(late, never)

    proc = SimpleNamespace(read=read, holders=lambda _inodes: holders, command_line=Sockets().command_line)
    places = PlaceWatch(proc, proc, SERVICES.__getitem__)  # type: ignore[arg-type]
    changes = []
    for now_s in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 60.0, 63.0, 64.0, 123.0):
        if now_s == 2.0:
            holders[late.inode] = late.inode
        places.look(SimpleNamespace(read=lambda: (np.zeros(2), np.zeros(2))), now_s)  # type: ignore[arg-type]
        changes.append(places.changed)
    assert looks == [0.0, 1.0, 2.0, 3.0, 63.0, 123.0]
    assert [at for at, changed in enumerate(changes) if changed] == [0, 2]
    found = places.places.listener(7, "127.0.0.1", 5432)
    assert found is not None
    assert found.service == "db"


def test_a_proxy_relays_only_for_whom_it_accepted() -> None:
    """Over the loopback it does; a container that comes by translation never meets it."""
    places = watch(*ALL)
    listener = places.places.listener(7, "127.0.0.1", 8080)
    assert listener is not None
    inside, outside = Dial(7, "127.0.0.1", 8080), Dial(8, "172.17.0.1", 8080)
    assert not places.relayed(listener, inside)
    assert places.accept(7, "127.0.0.1", 8080, "127.0.0.1", "docker-proxy")
    assert not places.accept(7, "127.0.0.1", 8080, "127.0.0.1", "docker-proxy")
    assert places.relayed(listener, inside)
    assert not places.relayed(listener, outside)
    places.translate(outside, Reached("web", 8, 80))
    assert places.places.translated[8, "172.17.0.1", 8080].service == "web"


def sockets(*ends: tuple[int, str, int, str, int]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Live sockets: role, own address and port, the peer's."""
    rows = np.zeros(len(ends), SOCK_VAL)
    for at, (role, local, sport, peer, dport) in enumerate(ends):
        rows[at]["key"]["role"], rows[at]["key"]["proto"], rows[at]["key"]["family"] = role, 6, 2
        rows[at]["key"]["peer"][:4] = [int(part) for part in peer.split(".")]
        rows[at]["local"][:4] = [int(part) for part in local.split(".")]
        rows[at]["sport"], rows[at]["dport"] = sport, dport
    return rows


def test_both_ends_of_a_translated_connection_meet() -> None:
    """The client's own address and port at the server's end; an exact mirror is another connection."""
    client = (1, "10.0.0.5", 40_000, "10.0.0.5", 8080)
    server = (2, "172.17.0.2", 80, "10.0.0.5", 40_000)
    rows = sockets(client, server, (2, "172.17.0.2", 80, "10.0.0.9", 40_000))
    assert translations(rows, np.array([True, True, True])) == [(0, 1)]
    assert translations(rows, np.array([False, True, True])) == []
    elsewhere = (1, "10.0.0.5", 40_000, "192.0.2.1", 443)
    mirror = (1, "10.0.0.5", 40_000, "172.17.0.2", 80)
    assert translations(sockets(elsewhere, mirror, server), np.array([True, True, True])) == []


def test_the_reader_of_links_is_shared(tmp_path: Path) -> None:
    """A namespace that is no number is none."""
    (tmp_path / "1" / "ns").mkdir(parents=True)
    (tmp_path / "1" / "ns" / "net").symlink_to("net:[x]")
    assert ProcSockets(tmp_path).netns(1) == 0
