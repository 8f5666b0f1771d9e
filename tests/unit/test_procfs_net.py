# SPDX-License-Identifier: Apache-2.0
"""Reading the network's tables in /proc, made by hand and real: listeners, namespaces, interfaces, routes."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernob.kernel.proc_sockets import listening_ports_of
from kernob.kernel.procfs import InterfaceCounters, ProcFs, Route
from kernob.state.names import sanitize, split_args
from tests.unit.proc_tree import HOST_NETNS, OTHER_NETNS, add_process, own_netns, reader

TCP_HEADING = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
)


def tcp_table(*rows: tuple[int, str], width: int = 8) -> bytes:
    """Write a /proc/net/tcp (width 8) or tcp6 (32) of (local port, state) rows."""
    zero = "0" * width
    lines = [
        f"{n:4}: {zero}:{port:04X} {zero}:0000 {state} 00000000:00000000 00:00000000 00000000  0 0 {n} 1 0\n"
        for n, (port, state) in enumerate(rows)
    ]
    return TCP_HEADING + "".join(lines).encode()


def test_a_descriptor_that_closes_meanwhile_hides_no_listener(tmp_path: Path) -> None:
    """Of a process's descriptors one cannot be followed any more; the ports of the others are found."""
    table = tcp_table((22, "0A"), (443, "0A"), (80, "01"))
    folder = add_process(tmp_path, 7, net_tcp=table, net_tcp6=tcp_table((8080, "0A"), width=32))
    (folder / "fd").mkdir()
    (folder / "fd" / "3").write_text("no link any more")
    for number, inode in ((4, 0), (5, 1)):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    assert listening_ports_of(tmp_path / "proc", 7) == {22, 443, 8080}


def test_listeners_of_every_namespace_are_found_once(tmp_path: Path) -> None:
    """One process of each namespace tells its listeners, v4 and v6; other states are not listeners."""
    add_process(
        tmp_path,
        1,
        netns=f"net:[{HOST_NETNS}]",
        net_tcp=tcp_table((22, "0A"), (443, "0A"), (51234, "01")),
        net_tcp6=tcp_table((443, "0A"), (8080, "0A"), (22, "06"), width=32),
    )
    add_process(tmp_path, 2, netns=f"net:[{HOST_NETNS}]", net_tcp=tcp_table((9, "0A")))
    add_process(tmp_path, 3, netns=f"net:[{OTHER_NETNS}]", net_tcp=tcp_table((443, "0A")))
    add_process(tmp_path, 4, netns="mnt:[1]", net_tcp=tcp_table((5, "0A")))
    assert reader(tmp_path).listening_ports() == {
        (HOST_NETNS, 22),
        (HOST_NETNS, 443),
        (HOST_NETNS, 8080),
        (OTHER_NETNS, 443),
    }


def test_a_process_that_vanished_leaves_its_namespace_to_the_next(tmp_path: Path) -> None:
    """Where the first process of a namespace cannot be read any more, another one tells."""
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]")
    add_process(tmp_path, 2, netns=f"net:[{HOST_NETNS}]", net_tcp=tcp_table((80, "0A")))
    assert reader(tmp_path).listening_ports() == {(HOST_NETNS, 80)}


def test_broken_lines_of_a_socket_table_are_left_out(tmp_path: Path) -> None:
    """Lines that are cut, not hexadecimal or empty are skipped, the others count."""
    table = TCP_HEADING + b"\n   0: 0000\n   1: 0100007F:XXXX 0:0 0A 0\n\xff\xfe\n" + tcp_table((80, "0A"))
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]", net_tcp=table)
    assert reader(tmp_path).listening_ports() == {(HOST_NETNS, 80)}


def test_the_host_s_namespace_is_the_first_process_s(tmp_path: Path) -> None:
    """Process 1 tells it; where its links may not be followed, our own; else it is 0."""
    assert reader(tmp_path).host_netns() == 0
    add_process(tmp_path, 9, netns=f"net:[{OTHER_NETNS}]")
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).host_netns() == OTHER_NETNS
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]")
    assert reader(tmp_path).host_netns() == HOST_NETNS


NET_DEV = b"""Inter-|   Receive                             |  Transmit
 face |bytes packets errs drop fifo frame compressed|bytes packets errs drop fifo colls carrier
    lo:    3193  29 0 0 0 0 0 0     3193    29 0 0 0 0 0 0
  eth0:372565220 9516 0 0 0 0 0 0 606842  5482 0 0 0 0 0 0
eth0.7:      10   1 0 0 0 0 0 0       20     2 0 0 0 0 0 0
docker0:      1   2 0 0 0 0 0 0        3     4 0 0 0 0 0 0
br-0a1b: broken
short: 1 2 3
"""


def test_interfaces_are_read_from_the_first_process(tmp_path: Path) -> None:
    """Counters come from the host's namespace, also where a number touches the name; broken lines do not."""
    add_process(tmp_path, 1, net_dev=NET_DEV)
    add_process(tmp_path, 9, net_dev=b"own: " + b"1 " * 16)
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).interfaces() == {
        "lo": InterfaceCounters(3193, 29, 3193, 29),
        "eth0": InterfaceCounters(372565220, 9516, 606842, 5482),
        "eth0.7": InterfaceCounters(10, 1, 20, 2),
        "docker0": InterfaceCounters(1, 2, 3, 4),
    }


def test_without_the_first_process_our_own_interfaces_count(tmp_path: Path) -> None:
    """Where /proc/1/net may not be read, /proc/self/net is."""
    add_process(tmp_path, 9, net_dev=b"own: " + b"1 " * 16)
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).interfaces() == {"own": InterfaceCounters(1, 1, 1, 1)}
    assert reader(tmp_path / "nowhere").interfaces() == {}


def test_interfaces_with_a_device_are_counted(tmp_path: Path) -> None:
    """Bridges, tunnels, VLANs and bonds carry again what the devices below them carry: not counted."""
    for name in ("eth0", "wlan0"):
        (tmp_path / "sys/class/net" / name / "device").mkdir(parents=True)
    names = ["wlan0", "lo", "eth0", "eth0.7", "bond0", "docker0", "wg0"]
    assert reader(tmp_path).counted_interfaces(names) == ("eth0", "wlan0")
    assert reader(tmp_path).counted_interfaces(names, ("bond0", "eth9")) == ("bond0",)


def test_without_devices_names_tell_what_is_virtual(tmp_path: Path) -> None:
    """In a container whose interface is one end of a veth, its name decides."""
    virtual = ["lo", "veth1a2b", "docker0", "br-0a1b", "virbr0", "cni0", "wg0", "tun0", "dummy0", "flannel.1"]
    assert reader(tmp_path).counted_interfaces(["eth0", "ens3", "enp1s0", *virtual]) == (
        "enp1s0",
        "ens3",
        "eth0",
    )


FIB_TRIE = b"""Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
        |-- nonsense
           /32 host LOCAL
"""


def hexadecimal(address: str) -> str:
    """Write a v4 address as /proc/net/route does."""
    number = int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)
    return f"{number:08X}"


def test_routes_are_ordered_as_the_kernel_would_choose(tmp_path: Path) -> None:
    """Own addresses and networks before the default route, of two defaults the one of lower metric."""
    rows = [
        ("wlan0", "0.0.0.0", "0003", 600, "0.0.0.0"),
        ("eth0", "0.0.0.0", "0003", 100, "0.0.0.0"),
        ("docker0", "172.17.0.0", "0001", 0, "255.255.0.0"),
        ("*", "10.9.0.0", "0201", 0, "255.255.0.0"),
        ("eth1", "10.8.0.0", "0001", "many", "255.255.0.0"),
    ]
    route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n" + "".join(
        f"{name}\t{hexadecimal(to)}\t00000000\t{flags}\t0\t0\t{metric}\t{hexadecimal(mask)}\t0\t0\t0\n"
        for name, to, flags, metric, mask in rows
    )
    route6 = "".join(
        f"{int(ipaddress.IPv6Address(to)):032x} {prefix:02x} {0:032x} 00 {0:032x}"
        f" {metric:08x} 00000001 00000000 {flags:08x} {name}\n"
        for name, to, prefix, metric, flags in [
            ("eth0", "::", 0, 1024, 0x3),
            ("lo", "::", 0, 0xFFFFFFFF, 0x200200),
            ("eth0", "2001:db8::2", 128, 0, 0x80200001),
            ("lo", "::1", 128, 0, 0x80200001),
        ]
    )
    add_process(
        tmp_path, 1, net_route=route + "broken\n", net_fib_trie=FIB_TRIE, net_ipv6_route=route6 + "zz\n"
    )
    assert [(str(network), interface) for network, interface in reader(tmp_path).routes()] == [
        ("2001:db8::2/128", "lo"),
        ("::1/128", "lo"),
        ("192.0.2.2/32", "lo"),
        ("172.17.0.0/16", "docker0"),
        ("127.0.0.0/8", "lo"),
        ("0.0.0.0/0", "eth0"),
        ("0.0.0.0/0", "wlan0"),
        ("::/0", "eth0"),
    ]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400))
def test_no_content_of_any_table_raises(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Arbitrary bytes in every file give empty or partial answers, never an exception."""
    root = tmp_path_factory.mktemp("proc")
    names = ("tcp", "tcp6", "dev", "route", "fib_trie", "ipv6_route")
    tables: dict[str, bytes | str] = {f"net_{name}": junk for name in names}
    add_process(
        root, 1, stat=junk, comm=junk, cmdline=junk, cgroup=junk, netns=f"net:[{HOST_NETNS}]", **tables
    )
    proc = reader(root)
    proc.read_process(1)
    proc.listening_ports()
    proc.interfaces()
    proc.routes()


def test_a_listener_of_this_process_is_found_in_the_running_kernel() -> None:
    """A socket that listens appears with this process's namespace; one that is only bound does not."""
    netns = own_netns()
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as listener:
        bound.bind(("127.0.0.1", 0))
        ports = ProcFs(Path("/proc"), sanitize, split_args).listening_ports()
        assert (netns, listener.getsockname()[1]) in ports
        assert (netns, bound.getsockname()[1]) not in ports


def test_routes_and_interfaces_of_the_running_kernel_have_loopback() -> None:
    """The real tables hold lo and its network; nothing of lo is counted."""
    proc = ProcFs(Path("/proc"), sanitize, split_args)
    assert Route(ipaddress.ip_network("127.0.0.0/8"), "lo") in proc.routes()
    assert "lo" in proc.interfaces()
    assert "lo" not in proc.counted_interfaces(proc.interfaces())
