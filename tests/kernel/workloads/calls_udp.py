# SPDX-License-Identifier: Apache-2.0
"""One case per way to move bytes over UDP, and the sockets whose bytes are nobody's network traffic.

A connected socket's destination is its peer; an unconnected one has none ("" and 0). Every case is a
function of a ledger; `cases.py` runs each in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct

import linux
from truth import LOOPBACK, End, Ledger, MissingFeatureError, plain


def unconnected(ledger: Ledger, family: int = socket.AF_INET) -> End:
    """A UDP socket bound to loopback that has no peer."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK[socket.AddressFamily(family)], 0))
    return End(sock, ledger, "", "", 0)


def connected(ledger: Ledger, to: End, family: int = socket.AF_INET) -> End:
    """A UDP socket connected to `to`."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect(to.sock.getsockname())
    address, port = sock.getpeername()[:2]
    return End(sock, ledger, "", plain(address), port)


def udp_connected(ledger: Ledger) -> None:
    """connect, then send(2), write(2), writev(2), sendmsg(2); answers by sendto(2); reads by each call."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    fd = client.sock.fileno()
    client.sent(client.sock.send(bytes(33)))
    client.sent(os.write(fd, bytes(34)))
    client.sent(os.writev(fd, [bytes(30), bytes(5)]))
    client.sent(client.sock.sendmsg([bytes(36)]))
    for _ in range(4):
        data, sender = server.sock.recvfrom(100)
        server.received(len(data))
        server.sent(server.sock.sendto(bytes(len(data) + 100), sender))
    client.received(len(client.sock.recv(1_000)))
    client.received(len(os.read(fd, 1_000)))
    client.received(os.readv(fd, [bytearray(10), bytearray(1_000)]))
    client.received(len(client.sock.recvmsg(1_000)[0]))


def udp_unconnected(ledger: Ledger) -> None:
    """sendto(2) and recvfrom(2) without connect, to two receivers."""
    one, two, sender = unconnected(ledger), unconnected(ledger), unconnected(ledger)
    for receiver, size in ((one, 61), (two, 62), (one, 63)):
        sender.sent(sender.sock.sendto(bytes(size), receiver.sock.getsockname()))
        receiver.received(len(receiver.sock.recvfrom(100)[0]))


def udp_v6(ledger: Ledger) -> None:
    """IPv6, connected one way, unconnected the other."""
    server = unconnected(ledger, socket.AF_INET6)
    client = connected(ledger, server, socket.AF_INET6)
    client.sent(client.sock.send(bytes(640)))
    data, sender = server.sock.recvfrom(1_000)
    server.received(len(data))
    server.sent(server.sock.sendto(bytes(641), sender))
    client.received(len(client.sock.recv(1_000)))


def udp_v4_mapped(ledger: Ledger) -> None:
    """An AF_INET6 socket that talks IPv4, connected and not."""
    server = unconnected(ledger)
    target = ("::ffff:127.0.0.1", server.sock.getsockname()[1])
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    loose = End(sock, ledger, "", "", 0)
    loose.sent(sock.sendto(bytes(46), target))
    server.received(len(server.sock.recv(100)))
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.connect(target)
    client = End(sock, ledger, "", "127.0.0.1", target[1])
    client.sent(sock.send(bytes(47)))
    server.received(len(server.sock.recv(100)))


def udp_many_messages(ledger: Ledger) -> None:
    """sendmmsg(2) and recvmmsg(2), connected and unconnected: each datagram counts."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    for size in linux.Messages([101, 102, 103]).send(client.sock.fileno()):
        client.sent(size)
    for size in linux.Messages([500] * 3).receive(server.sock.fileno()):
        server.received(size)
    host, port = server.sock.getsockname()
    name = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    loose = unconnected(ledger)
    for size in linux.Messages([104, 105], name).send(loose.sock.fileno()):
        loose.sent(size)
    for size in linux.Messages([500] * 4).receive(server.sock.fileno(), linux.MSG_WAITFORONE):
        server.received(size)


def udp_truncated(ledger: Ledger) -> None:
    """A short buffer counts what the call returned: the part, or with MSG_TRUNC the whole datagram."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    client.sent(client.sock.send(bytes(50)))
    server.received(len(server.sock.recv(20)))
    client.sent(client.sock.send(bytes(51)))
    buffer = bytearray(20)
    target = (ctypes.c_char * 20).from_buffer(buffer)
    server.received(linux.checked(linux.libc.recv(server.sock.fileno(), target, 20, socket.MSG_TRUNC)))


def udp_peek_and_nothing(ledger: Ledger) -> None:
    """MSG_PEEK, an empty datagram and EAGAIN count nothing."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    client.sent(client.sock.send(bytes(70)))
    server.sock.recv(100, socket.MSG_PEEK)
    server.sock.recvmsg(100, 0, socket.MSG_PEEK)
    server.received(len(server.sock.recv(100)))
    client.sent(client.sock.send(b""))
    server.received(len(server.sock.recv(100)))
    server.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        server.received(len(server.sock.recv(100)))


def udp_error_queue(ledger: Ledger) -> None:
    """The own datagram that comes back through MSG_ERRQUEUE (IP_RECVERR) was not received."""
    closed = unconnected(ledger)
    client = connected(ledger, closed)
    closed.close()
    client.sock.setsockopt(socket.IPPROTO_IP, linux.IP_RECVERR, 1)
    client.sent(client.sock.send(bytes(80)))
    data = b""
    while not data:
        with contextlib.suppress(BlockingIOError):
            data = client.sock.recvmsg(100, 512, linux.MSG_ERRQUEUE)[0]
    if len(data) != 80:
        raise AssertionError(f"the error queue gave {len(data)} bytes back")


def udp_refused(ledger: Ledger) -> None:
    """A send into the void counts; the ECONNREFUSED it brings to the next call counts nothing."""
    closed = unconnected(ledger)
    client = connected(ledger, closed)
    closed.close()
    client.sent(client.sock.send(bytes(81)))
    try:
        client.received(len(client.sock.recv(100)))
    except ConnectionRefusedError:
        return
    raise AssertionError("no ICMP error came back")


def udp_corked(ledger: Ledger) -> None:
    """Corked pieces and MSG_MORE count as they are written, though one datagram leaves."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    client.sock.setsockopt(socket.IPPROTO_UDP, linux.UDP_CORK, 1)
    client.sent(client.sock.send(bytes(90)))
    client.sent(client.sock.send(bytes(9)))
    client.sock.setsockopt(socket.IPPROTO_UDP, linux.UDP_CORK, 0)
    server.received(len(server.sock.recv(1_000)))
    client.sent(client.sock.send(bytes(91), socket.MSG_MORE))
    client.sent(client.sock.send(bytes(8)))
    server.received(len(server.sock.recv(1_000)))
    if ledger.total("receive") != 198:
        raise AssertionError("cork did not join the datagrams")


def udp_segmented(ledger: Ledger) -> None:
    """UDP_SEGMENT: one send becomes several datagrams and counts once."""
    server = unconnected(ledger)
    client = connected(ledger, server)
    try:
        client.sock.setsockopt(socket.IPPROTO_UDP, linux.UDP_SEGMENT, 1_000)
    except OSError as error:
        raise MissingFeatureError(f"UDP_SEGMENT ({error.strerror})") from error
    client.sent(client.sock.send(bytes(4_500)))
    for _ in range(5):
        server.received(len(server.sock.recv(2_000)))


def udp_reused_socket(ledger: Ledger) -> None:
    """A socket that connects to one peer, then to another, then to none: each send its own destination."""
    one, two = unconnected(ledger), unconnected(ledger)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for receiver, size in ((one, 111), (two, 112)):
        sock.connect(receiver.sock.getsockname())
        host, port = receiver.sock.getsockname()
        End(sock, ledger, "", host, port).sent(sock.send(bytes(size)))
        receiver.received(len(receiver.sock.recv(200)))


def not_network(ledger: Ledger) -> None:
    """Unix, netlink, ping and raw sockets and pipes are nobody's TCP or UDP bytes: no series at all."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        left.send(bytes(1_000))
        right.recv(2_000)
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    # struct nlmsghdr + struct rtgenmsg: RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP
    netlink.send(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0))
    netlink.recv(65_536)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, bytes(1_000))
    os.read(read_fd, 1_000)
    try:
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError as error:
        raise MissingFeatureError("raw sockets") from error
    # an echo request to ourselves: type 8, code 0, checksum of a zero body
    ping.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0) + bytes(100), ("127.0.0.1", 0))
    ping.recv(200)
    # raw sockets get copies of everybody's packets: here a datagram and a RST to port 9
    datagram = struct.pack("!HHHH", 1, 9, 108, 0) + bytes(100)
    reset = struct.pack("!HHIIBBHHH", 1, 9, 0, 0, 0x50, 4, 0, 0, 0)
    for number, packet in ((socket.IPPROTO_UDP, datagram), (socket.IPPROTO_TCP, reset)):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, number)
        raw.sendto(packet, ("127.0.0.1", 0))
        raw.recv(200)


CASES = (
    udp_connected,
    udp_unconnected,
    udp_v6,
    udp_v4_mapped,
    udp_many_messages,
    udp_truncated,
    udp_peek_and_nothing,
    udp_error_queue,
    udp_refused,
    udp_corked,
    udp_segmented,
    udp_reused_socket,
    not_network,
)
