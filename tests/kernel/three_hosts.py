# SPDX-License-Identifier: Apache-2.0
"""Three hosts in network namespaces with a router between them, each with services and an agent; the truth.

Used by tests/stack/test_map.py. The router translates: of what c calls it hides c's address, and it has an
address (VIP) under which others reach c's vault. `relay` is the way from there to where agents report to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from topology import HTTP, Topology, no_groups, program, run

_NET = f"10.{128 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
ADDRESSES = {"a": f"{_NET}.2", "b": f"{_NET}.6", "c": f"{_NET}.10"}
ROUTER = {"a": f"{_NET}.1", "b": f"{_NET}.5", "c": f"{_NET}.9"}
VIP = f"{_NET}.200"
PORT = 4318
"""Of the relay, at the router's addresses."""

TRUTH = {
    ("a/shop", "a/cache", 6379), ("a/shop", "b/api", 8080), ("a/shop", f"ip/{VIP}", 8443),
    ("b/api", "b/db", 5432), ("b/reporter", "a/cache", 6379),
    ("c/pusher", "b/api", 8080),
    ("clients/internal", "b/api", 8080),  # c, behind the router's address: b cannot know who that is
    ("clients/internal", "c/vault", 443),  # a, which knows the vault by the router's address only
}  # fmt: skip
"""Every edge there is: source, target, port."""


@contextlib.contextmanager
def built(directory: Path) -> Iterator[Topology]:
    """The hosts with their services running; all of it is removed at the end."""
    program("ip")
    hosts = Topology(directory, mark=f"kh{os.getpid()}", containers=())
    with contextlib.ExitStack() as stack:
        stack.callback(no_groups, hosts)
        try:
            _network(hosts, stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"missing feature: namespaces with veth and nat ({str(error.stderr).strip()[:80]})")
        _services(hosts)
        stack.callback(hosts.stop_all)
        for name in hosts.commands:
            hosts.start(name)
        yield hosts


def _network(hosts: Topology, stack: contextlib.ExitStack) -> None:
    for name in ("router", *ADDRESSES):
        run("ip", "netns", "add", hosts.ns(name))
        stack.callback(run, "ip", "netns", "delete", hosts.ns(name))
        run("ip", "-n", hosts.ns(name), "link", "set", "lo", "up")
    router = hosts.ns("router")
    for name, address in ADDRESSES.items():
        inner = hosts.ns(name)
        run(
            "ip",
            "-n",
            router,
            "link",
            "add",
            f"to-{name}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            inner,
        )
        run("ip", "-n", router, "addr", "add", f"{ROUTER[name]}/30", "dev", f"to-{name}")
        run("ip", "-n", router, "link", "set", f"to-{name}", "up")
        run("ip", "-n", inner, "addr", "add", f"{address}/30", "dev", "eth0")
        run("ip", "-n", inner, "link", "set", "eth0", "up")
        run("ip", "-n", inner, "route", "add", "default", "via", ROUTER[name])
    run("ip", "netns", "exec", router, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    run(
        *("ip", "netns", "exec", router, program("nft"), "-f", "-"),
        text=f"""table ip kernobtest {{
            chain pre {{ type nat hook prerouting priority -100;
                ip daddr {VIP} tcp dport 8443 dnat to {ADDRESSES["c"]}:443; }}
            chain post {{ type nat hook postrouting priority 100; ip saddr {ADDRESSES["c"]} masquerade; }}
        }}""",
    )


def _services(hosts: Topology) -> None:
    every = "0.0.0.0"
    api = [ADDRESSES["b"], 8080]
    hosts.python("cache", "a", listen=[every, 6379])
    calls = [[*api, "keep", HTTP], ["127.0.0.1", 6379, "keep", "x"], [VIP, 8443, "short", "x"]]
    hosts.python("shop", "a", calls=calls)
    hosts.python("db", "b", listen=["127.0.0.1", 5432])
    hosts.python("api", "b", listen=[every, 8080], workers=2, calls=[["127.0.0.1", 5432, "short", "x"]])
    hosts.python("reporter", "b", calls=[[ADDRESSES["a"], 6379, "short", "x"]])
    hosts.python("vault", "c", listen=[every, 443])
    hosts.python("pusher", "c", calls=[[*api, "short", HTTP]])


@contextlib.contextmanager
def relay(hosts: Topology, to: tuple[str, int]) -> Iterator[None]:
    """Whoever connects to the router's PORT in there reaches `to` out here."""
    made: list[socket.socket] = []

    def inside() -> None:  # a thread has a network namespace of its own
        with open(f"/run/netns/{hosts.ns('router')}") as namespace:  # noqa: PTH123
            done = ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000)
        assert done == 0, os.strerror(ctypes.get_errno())
        made.append(socket.create_server(("0.0.0.0", PORT)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    with made[0] as listener:
        accepting = threading.Thread(target=_accept, args=(listener, to))
        accepting.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(listener: socket.socket, to: tuple[str, int]) -> None:
    """Passes on until the listener is shut down; then ends what is still open."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                ends = (listener.accept()[0], socket.create_connection(to))
            except OSError:
                break
            for here, there in (ends, ends[::-1]):
                thread = threading.Thread(target=_pass_on, args=(here, there))
                thread.start()
                stack.callback(thread.join)
            for each in ends:
                stack.enter_context(each)
                stack.callback(_shut, each, socket.SHUT_RDWR)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(target, socket.SHUT_WR)


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)
