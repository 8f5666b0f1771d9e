# SPDX-License-Identifier: Apache-2.0
"""Who listens where, and which addresses are this host's, in every network namespace some process is in.

In: a proc root. Out: records. Called by `features.places` when something began or ceased to listen, and
about once a minute. Tables are read up to their last listener only, which come first.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kernob.kernel.proc_sockets import ProcSockets, read_end

_LISTEN = b"0A"  # TCP_LISTEN, include/net/tcp_states.h
_FILE_BYTES_MAX = 1 << 20
_BRIDGES = re.compile(
    r"lo\Z|docker|br-|virbr|veth|cni|podman|lxc|lxd|incus|flannel|cali|cilium|kube-|weave|nerdctl"
)
"""Interfaces whose addresses repeat on every host: they say nothing to another one."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """One listening TCP socket; `address` as text, 0.0.0.0 or :: for all."""

    netns: int
    address: str
    port: int
    inode: int


@dataclass(frozen=True, slots=True)
class Namespaces:
    """One reading of all namespaces.

    `addresses` by namespace, loopback included; `own` are those of the namespace `host` by which other hosts
    may know this one.
    """

    listening: tuple[ListeningSocket, ...]
    addresses: dict[int, frozenset[str]]
    own: frozenset[str]
    host: int


class Listening:
    """Reader of one proc root; keeps nothing between calls. `own_only`: of this process's namespace alone."""

    def __init__(self, root: Path, *, own_only: bool = False) -> None:
        self._root = os.fspath(root)
        self._own_only = own_only
        self._sockets = ProcSockets(root)

    def read(self) -> Namespaces:
        """Look at all namespaces."""
        listening: list[ListeningSocket] = []
        addresses: dict[int, frozenset[str]] = {}
        host = (not self._own_only and self._sockets.netns(1)) or self._sockets.netns(os.getpid())
        own: frozenset[str] = frozenset()
        for pid in self._sockets.pids():
            netns = self._sockets.netns(pid)
            if not netns or netns in addresses or (self._own_only and netns != host):
                continue
            place = f"{self._root}/{pid}/net"
            found = list(_listeners(f"{place}/tcp", netns))
            local = {address for address, _ in _local4(_text(f"{place}/fib_trie"), ())}
            if not local:
                continue  # it ended meanwhile: let the namespace's next process tell
            six = list(_local6(_text(f"{place}/if_inet6")))
            listening += found
            listening += _listeners(f"{place}/tcp6", netns)
            addresses[netns] = frozenset(local | {address for address, _ in six})
            if netns == host:
                bridges = tuple(_bridge_networks(_text(f"{place}/route")))
                four = {a for a, away in _local4(_text(f"{place}/fib_trie"), bridges) if away}
                own = frozenset(four | {a for a, name in six if _is_own6(a, name)})
        return Namespaces(tuple(listening), addresses, own, host)

    def command_line(self, pid: int) -> tuple[str, ...]:
        """Arguments of a process, () when it is gone."""
        raw = _bytes(f"{self._root}/{pid}/cmdline")
        return tuple(part.decode("utf-8", "replace") for part in raw.split(b"\0")[:-1])


def forward_of(arguments: tuple[str, ...]) -> tuple[str, int] | None:
    """Where a docker-proxy leads, by its own command line; None for other programs.

    >>> forward_of(("/usr/bin/docker-proxy", "-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "8080",
    ...             "-container-ip", "172.17.0.2", "-container-port", "80"))
    ('172.17.0.2', 80)
    """
    if not arguments or arguments[0].rpartition("/")[2] != "docker-proxy":
        return None
    options = {name.lstrip("-"): value for name, value in itertools.pairwise(arguments[1:])}
    address, port = options.get("container-ip", ""), options.get("container-port", "")
    try:
        return str(ipaddress.ip_address(address)), int(port)
    except ValueError:
        return None


def _listeners(path: str, netns: int) -> Iterator[ListeningSocket]:
    try:
        with open(path, "rb") as lines:  # noqa: PTH123 - one of many paths that are text already
            next(lines, None)
            for line in lines:
                fields = line.split(None, 10)
                if len(fields) < 10 or fields[3] != _LISTEN:
                    break
                raw, port = read_end(fields[1])
                family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
                address = socket.inet_ntop(family, raw)
                mapped = ipaddress.IPv6Address(raw).ipv4_mapped if len(raw) == 16 else None
                yield ListeningSocket(netns, str(mapped or address), port, int(fields[9]))
    except (OSError, ValueError):
        return


def _local4(trie: str, bridges: tuple[ipaddress.IPv4Network, ...]) -> Iterator[tuple[str, bool]]:
    """Local addresses out of fib_trie, and whether others may know this host by them."""
    address = ""
    for line in trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"] and len(words) == 2:
            address = words[1]
        elif words[:2] == ["/32", "host"] and words[2:] == ["LOCAL"]:
            try:
                parsed = ipaddress.IPv4Address(address)
            except ValueError:
                continue
            away = not parsed.is_loopback and not any(parsed in network for network in bridges)
            yield address, away


def _local6(table: str) -> Iterator[tuple[str, str]]:
    """Addresses and interfaces out of if_inet6."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) == 6 and re.fullmatch(r"[0-9a-f]{32}", fields[0]):
            yield str(ipaddress.IPv6Address(int(fields[0], 16))), fields[5]


def _is_own6(address: str, interface: str) -> bool:
    parsed = ipaddress.IPv6Address(address)
    return not (parsed.is_loopback or parsed.is_link_local or _BRIDGES.match(interface))


def _bridge_networks(table: str) -> Iterator[ipaddress.IPv4Network]:
    """Networks behind container bridges, out of /proc/net/route (words in the machine's byte order)."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or not _BRIDGES.match(fields[0]) or fields[1] == "00000000":
            continue
        try:
            raw, mask = (int(fields[at], 16).to_bytes(4, "little") for at in (1, 7))
            yield ipaddress.IPv4Network((raw, int.from_bytes(mask, "big").bit_count()), strict=False)
        except ValueError:
            continue


def _text(path: str) -> str:
    return _bytes(path).decode("ascii", "replace")


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(_FILE_BYTES_MAX)
    except OSError:
        return b""
