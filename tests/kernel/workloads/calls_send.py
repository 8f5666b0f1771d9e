# SPDX-License-Identifier: Apache-2.0
"""One case per call that sends on TCP: each call's own result is what it must be charged with.

Every case is a function of a ledger; `cases.py` runs each in a process of its own. The peer end lives in
the same process and reads by plain recv(2).
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading

import linux
from truth import End, Ledger, MissingFeatureError, check_pair, client_end, server_end, tcp_pair


def _finish(client: End, server: End) -> None:
    """Check both ledgers against the kernel's figures and close."""
    check_pair(client, server)
    client.close()
    server.close()


def send(ledger: Ledger) -> None:
    """A plain send, both ways."""
    client, server = tcp_pair(ledger)
    client.send(100)
    server.drain(100)
    server.send(4321)
    client.drain(4321)
    _finish(client, server)


def send_v6(ledger: Ledger) -> None:
    """send(2) over IPv6."""
    client, server = tcp_pair(ledger, socket.AF_INET6)
    client.send(166)
    server.drain(166)
    server.send(66)
    client.drain(66)
    _finish(client, server)


def send_v4_mapped(ledger: Ledger) -> None:
    """An IPv4 client of a dual-stack IPv6 listener: both ends are one IPv4 destination."""
    listening = socket.socket(socket.AF_INET6)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", 0))
    listening.listen()
    sock = socket.create_connection(("127.0.0.1", listening.getsockname()[1]))
    accepted, _ = listening.accept()
    listening.close()
    client, server = client_end(sock, ledger), server_end(accepted, ledger)
    client.send(44)
    server.drain(44)
    server.send(4)
    client.drain(4)
    _finish(client, server)


def send_to_v4_mapped(ledger: Ledger) -> None:
    """An AF_INET6 client that connects to ::ffff:127.0.0.1, an IPv4 listener."""
    listening = socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_INET6)
    sock.connect(("::ffff:127.0.0.1", listening.getsockname()[1]))
    accepted, _ = listening.accept()
    listening.close()
    client, server = client_end(sock, ledger), server_end(accepted, ledger)
    client.send(45)
    server.drain(45)
    server.send(5)
    client.drain(5)
    _finish(client, server)


def write(ledger: Ledger) -> None:
    """A plain write."""
    client, server = tcp_pair(ledger)
    client.sent(os.write(client.sock.fileno(), bytes(50)))
    server.drain(50)
    _finish(client, server)


def writev(ledger: Ledger) -> None:
    """One writev of two buffers."""
    client, server = tcp_pair(ledger)
    client.sent(os.writev(client.sock.fileno(), [bytes(10), bytes(20)]))
    server.drain(30)
    _finish(client, server)


def sendmsg(ledger: Ledger) -> None:
    """One sendmsg of two buffers."""
    client, server = tcp_pair(ledger)
    client.sent(client.sock.sendmsg([bytes(7), bytes(8)]))
    server.drain(15)
    _finish(client, server)


def sendmmsg(ledger: Ledger) -> None:
    """Three messages of one sendmmsg are three counts."""
    client, server = tcp_pair(ledger)
    for size in linux.Messages([11, 12, 13]).send(client.sock.fileno()):
        client.sent(size)
    server.drain(36)
    _finish(client, server)


def sendfile(ledger: Ledger) -> None:
    """By sendfile a small and a large piece."""
    client, server = tcp_pair(ledger)
    with tempfile.TemporaryFile() as source:
        source.write(bytes(300_000))
        source.flush()
        reader = threading.Thread(target=server.drain, args=(203_000,))
        reader.start()
        for size in (3_000, 200_000):
            offset = 0
            while offset < size:
                offset += client.sent(
                    os.sendfile(client.sock.fileno(), source.fileno(), offset, size - offset)
                )
        reader.join()
    _finish(client, server)


def splice_to_socket(ledger: Ledger) -> None:
    """splice(2) from a pipe into the socket."""
    client, server = tcp_pair(ledger)
    read_fd, write_fd = os.pipe()
    for size in (500, 30_000):
        left = os.write(write_fd, bytes(size))
        while left:
            left -= client.sent(os.splice(read_fd, client.sock.fileno(), left))
        server.drain(size)
    _finish(client, server)


def zerocopy_send(ledger: Ledger) -> None:
    """MSG_ZEROCOPY; its completion, read from the error queue, is no received byte."""
    client, server = tcp_pair(ledger)
    client.sock.setsockopt(socket.SOL_SOCKET, linux.SO_ZEROCOPY, 1)
    reader = threading.Thread(target=server.drain, args=(100_000,))
    reader.start()
    client.send(100_000, linux.MSG_ZEROCOPY)
    reader.join()
    data, control, _, _ = client.sock.recvmsg(100, 512, linux.MSG_ERRQUEUE)
    if data or not control:
        raise AssertionError(f"unexpected completion: {data!r} {control!r}")
    _finish(client, server)


def send_nonblocking_until_full(ledger: Ledger) -> None:
    """Partial sends count what they returned, EAGAIN counts nothing."""
    client, server = tcp_pair(ledger)
    client.sock.setblocking(False)
    refused = 0
    while refused < 3:
        try:
            client.sent(client.sock.send(bytes(1_000_003)))
        except BlockingIOError:
            refused += 1
    server.drain(ledger.total("transmit"))
    _finish(client, server)


def send_out_of_band(ledger: Ledger) -> None:
    """One urgent byte, sent and received by MSG_OOB, between ordinary ones."""
    client, server = tcp_pair(ledger)
    client.send(10)
    server.drain(10)
    client.sent(client.sock.send(b"!", socket.MSG_OOB))
    urgent = b""
    while not urgent:
        try:
            urgent = server.sock.recv(1, socket.MSG_OOB)
        except OSError:  # EINVAL or EAGAIN until the segment is there
            continue
    server.received(len(urgent))
    client.send(5)
    server.drain(5)
    _finish(client, server)


def send_more_and_corked(ledger: Ledger) -> None:
    """MSG_MORE and TCP_CORK delay the segments, not the count."""
    client, server = tcp_pair(ledger)
    client.send(30, socket.MSG_MORE)
    client.send(3)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    client.send(40)
    client.send(4)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    server.drain(77)
    _finish(client, server)


def fast_open(ledger: Ledger) -> None:
    """TCP fast open: sendto(2) with MSG_FASTOPEN connects and sends; the second carries data in the SYN."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, linux.TCP_FASTOPEN, 16)
    for size in (9, 19):
        sock = socket.socket()
        try:
            sent = sock.sendto(bytes(size), linux.MSG_FASTOPEN, listening.getsockname())
        except OSError as error:
            raise MissingFeatureError(f"TCP fast open ({error.strerror})") from error
        accepted, _ = listening.accept()
        client, server = client_end(sock, ledger), server_end(accepted, ledger)
        client.sent(sent)
        server.drain(sent)
        client.close()
        server.close()
    listening.close()


def send_after_the_peer_left(ledger: Ledger) -> None:
    """A send that the kernel accepted counts though the peer is gone; EPIPE and ECONNRESET do not."""
    client, server = tcp_pair(ledger)
    server.close()
    client.send(21)
    errors = 0
    while not errors:
        try:
            client.sent(client.sock.send(bytes(21)))
        except (BrokenPipeError, ConnectionResetError):
            errors += 1
    client.close()


def send_from_threads(ledger: Ledger) -> None:
    """Threads that are not the leader send and receive for their process."""
    client, server = tcp_pair(ledger)
    for worker in (
        threading.Thread(target=client.send, args=(12_345,)),
        threading.Thread(target=server.drain, args=(12_345,)),
    ):
        worker.start()
        worker.join()
    _finish(client, server)


def send_large(ledger: Ledger) -> None:
    """20,000,000 bytes each way at once."""
    client, server = tcp_pair(ledger)
    size = 20_000_000
    workers = [threading.Thread(target=call, args=(size,)) for call in (client.send, server.drain)]
    workers += [threading.Thread(target=call, args=(size,)) for call in (server.send, client.drain)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    _finish(client, server)


CASES = (
    send,
    send_v6,
    send_v4_mapped,
    send_to_v4_mapped,
    write,
    writev,
    sendmsg,
    sendmmsg,
    sendfile,
    splice_to_socket,
    zerocopy_send,
    send_nonblocking_until_full,
    send_out_of_band,
    send_more_and_corked,
    fast_open,
    send_after_the_peer_left,
    send_from_threads,
    send_large,
)
