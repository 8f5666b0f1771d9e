# SPDX-License-Identifier: Apache-2.0
"""How much of what crossed the host's interfaces is explained by processes (TERMS.md, Coverage).

In: interface counters before and after a window, the payload attributed to processes in it, and the
host's routes. Out: `Coverage` records. Called by the agent once per window. Pure: no clock, no file.

The headers of attributed packets are estimated, because nobody counts packets per process for nothing.
With P packets and B bytes on the interfaces, both directions together, each packet carrying h bytes of
headers, W = B - h * P bytes of payload crossed. Attributed payload A explains the share s = A / W of it,
at most 1, and is taken to own the same share of the packets, those without payload (acknowledgements)
included. So for one direction with a payload of A1 and P1 packets in B1 bytes

    ratio = (A1 + s * h * P1) / B1                    range 0.. ; 1 is all, above 1 counted twice

Both directions share one s, because a download's transmit side is nearly all acknowledgements. The
estimate is exact when everything is attributed and h is right; it needs no guess of packet sizes, which
offloads (GSO, GRO) put anywhere between 60 bytes and 64 KiB. Blind: packets without payload that belong
to nobody, such as a flood of SYNs, count as owned in proportion.

>>> wire = WireBytes(rx_bytes=1_514_000, rx_packets=1_000, tx_bytes=33_000, tx_packets=500)
>>> half = Payload(tcp4_bytes=724_000)  # of 1,000 full packets of 1,448 bytes
>>> [round(c.ratio, 3) if c.ratio else c.ratio for c in coverage("eth0", wire, half, Payload())]
[0.5, None]
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kernob.model import Coverage

INFORMATIVE_BYTES = 1_000_000
"""Below so many interface bytes of one direction in a window there is no ratio (TERMS.md: 1 MB)."""

ETHERNET_HEADER_BYTES = 14  # interface statistics count it, not the checksum (kernel docs, statistics)
IPV4_HEADER_BYTES = 20  # RFC 791, 3.1
IPV6_HEADER_BYTES = 40  # RFC 8200, 3
TCP_HEADER_BYTES = 20 + 12  # RFC 9293, 3.1, with the timestamps Linux sends padded (RFC 7323, appendix A)
UDP_HEADER_BYTES = 8  # RFC 768

RemoteNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of one direction that processes moved in a window, over the counted interfaces only."""

    tcp4_bytes: int = 0
    tcp6_bytes: int = 0
    udp4_bytes: int = 0
    udp6_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.tcp4_bytes + self.tcp6_bytes + self.udp4_bytes + self.udp6_bytes


@dataclass(frozen=True, slots=True)
class WireBytes:
    """What the counted interfaces counted in a window, link headers included."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


def wire_bytes(
    before: Mapping[str, tuple[int, int, int, int]],
    after: Mapping[str, tuple[int, int, int, int]],
    interfaces: Iterable[str],
) -> WireBytes:
    """Sum the growth of the counters (rx bytes, rx packets, tx bytes, tx packets) of `interfaces`.

    One that is missing before or after adds nothing; of a counter that fell, its new value is what it
    counted since it was set back.
    """
    sums = [0, 0, 0, 0]
    for name in interfaces:
        if name in before and name in after:
            for column in range(4):
                old, new = before[name][column], after[name][column]
                sums[column] += new - old if new >= old else new
    return WireBytes(*sums)


def coverage(interface: str, wire: WireBytes, received: Payload, sent: Payload) -> tuple[Coverage, Coverage]:
    """Explained share of the receive and the transmit direction, in this order.

    `interface` is the label of the record: the interface's name, or several joined. The ratio is None
    where fewer than `INFORMATIVE_BYTES` crossed in that direction.
    """
    header_bytes = mean_header_bytes(received, sent)
    payload_bytes = received.total_bytes + sent.total_bytes
    packets = wire.rx_packets + wire.tx_packets
    on_wire_bytes = wire.rx_bytes + wire.tx_bytes - header_bytes * packets
    share = payload_bytes / max(on_wire_bytes, payload_bytes) if payload_bytes else 0.0
    headers_bytes = share * header_bytes
    return (
        _record(interface, "receive", received.total_bytes + headers_bytes * wire.rx_packets, wire.rx_bytes),
        _record(interface, "transmit", sent.total_bytes + headers_bytes * wire.tx_packets, wire.tx_bytes),
    )


def mean_header_bytes(received: Payload, sent: Payload) -> float:
    """Headers of a packet, 42 (UDP, v4) to 86 (TCP, v6), by what the payload travelled in; 66 of none."""
    network = {4: ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES, 6: ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES}
    mix = (
        (received.tcp4_bytes + sent.tcp4_bytes, network[4] + TCP_HEADER_BYTES),
        (received.tcp6_bytes + sent.tcp6_bytes, network[6] + TCP_HEADER_BYTES),
        (received.udp4_bytes + sent.udp4_bytes, network[4] + UDP_HEADER_BYTES),
        (received.udp6_bytes + sent.udp6_bytes, network[6] + UDP_HEADER_BYTES),
    )
    total_bytes = sum(payload for payload, _ in mix)
    if total_bytes == 0:
        return float(network[4] + TCP_HEADER_BYTES)
    return sum(payload * header for payload, header in mix) / total_bytes


def _record(interface: str, direction: str, explained_bytes: float, wire_bytes_: int) -> Coverage:
    ratio = explained_bytes / wire_bytes_ if wire_bytes_ >= INFORMATIVE_BYTES else None
    return Coverage(interface=interface, direction=direction, ratio=ratio)


class Reach:
    """Tells whether packets to a peer cross one of the counted interfaces, by the host's routes.

    Without it a reverse proxy's bytes to its containers would count as explained although only the
    bridge saw them, and a request to the host's own address although only loopback did.
    """

    def __init__(
        self, routes: Iterable[tuple[RemoteNetwork, str]], interfaces: Collection[str], remembered: int = 8192
    ) -> None:
        """`routes` are (network, interface) pairs, the most specific first."""
        counted = frozenset(interfaces)
        self._routes: dict[int, list[tuple[int, int, bool]]] = {4: [], 6: []}
        for network, interface in routes:
            row = (int(network.netmask), int(network.network_address), interface in counted)
            self._routes[network.version].append(row)
        self.crosses = functools.lru_cache(remembered)(self._crosses)
        """Whether a peer's address as text lies behind a counted interface; False for what is none."""

    def _crosses(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # "" of an unconnected UDP socket: nobody knows where it sent
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        if parsed.is_loopback:
            return False
        number = int(parsed)
        for mask, network, counted in self._routes[parsed.version]:
            if number & mask == network:
                return counted
        return False
