# SPDX-License-Identifier: Apache-2.0
"""Coverage: how much of the interfaces' bytes is explained by processes, and when nothing is said."""

from __future__ import annotations

import doctest
import ipaddress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kernob.derive.coverage as module
from kernob.derive.coverage import Payload, Reach, WireBytes, coverage, mean_header_bytes, wire_bytes
from kernob.model import Coverage

FULL_SEGMENT_BYTES = 1448
HEADER_BYTES = 66


def ratios(wire: WireBytes, received: Payload, sent: Payload) -> tuple[float | None, float | None]:
    """Coverage of the receive and the transmit direction."""
    receive, transmit = coverage("eth0", wire, received, sent)
    return receive.ratio, transmit.ratio


def wire_of(rx_payload: int, rx_packets: int, tx_payload: int, tx_packets: int) -> WireBytes:
    """Interface counters of packets with TCP over v4 headers and so much payload."""
    return WireBytes(
        rx_payload + rx_packets * HEADER_BYTES, rx_packets, tx_payload + tx_packets * HEADER_BYTES, tx_packets
    )


def test_the_module_s_example_is_true() -> None:
    """The worked example in the docstring gives the figures it shows."""
    assert doctest.testmod(module).failed == 0


def test_a_fully_explained_download_is_covered_both_ways() -> None:
    """The acknowledgements of a download are explained by the download, although they carry nothing."""
    payload = 100_000 * FULL_SEGMENT_BYTES
    wire = wire_of(payload, 100_000, 200, 50_000)
    assert ratios(wire, Payload(tcp4_bytes=payload), Payload(tcp4_bytes=200)) == (1.0, 1.0)


def test_offloads_change_nothing() -> None:
    """An interface that counts packets of 40 KB, as virtual ones do, gives the same ratio."""
    payload = 100_000 * FULL_SEGMENT_BYTES
    wire = wire_of(payload, 3_620, 0, 1_800)
    receive, transmit = ratios(wire, Payload(tcp4_bytes=payload), Payload())
    assert receive == 1.0
    assert transmit is None  # 118,800 bytes of acknowledgements say nothing


def test_a_million_one_byte_packets_are_covered() -> None:
    """Where headers are 66 of 67 bytes, all explained is still 1 and a quarter is a quarter."""
    wire = wire_of(1_000_000, 1_000_000, 1_000_000, 1_000_000)
    everything, quarter = Payload(tcp4_bytes=1_000_000), Payload(tcp4_bytes=250_000)
    assert ratios(wire, everything, everything) == (1.0, 1.0)
    assert ratios(wire, quarter, quarter) == (0.25, 0.25)


def test_unexplained_bytes_lower_their_direction() -> None:
    """Of two equal directions with nothing explained in one, that one keeps only shared headers."""
    payload = 10_000 * FULL_SEGMENT_BYTES
    wire = wire_of(payload, 10_000, payload, 10_000)
    receive, transmit = ratios(wire, Payload(tcp4_bytes=payload), Payload())
    assert receive == pytest.approx((payload + 0.5 * 660_000) / (payload + 660_000))
    assert transmit == pytest.approx(0.5 * 660_000 / (payload + 660_000))


def test_bytes_counted_twice_show_as_more_than_one() -> None:
    """A ratio above 1 is not hidden: it means that something is counted that never crossed."""
    wire = wire_of(14_480_000, 10_000, 0, 0)
    receive, _ = ratios(wire, Payload(tcp4_bytes=28_960_000), Payload())
    assert receive == pytest.approx((28_960_000 + 660_000) / 15_140_000)


@pytest.mark.parametrize(("on_wire", "known"), [(999_999, False), (1_000_000, True)])
def test_below_a_megabyte_nothing_is_said(on_wire: int, known: bool) -> None:
    """The ratio is None where fewer than 1,000,000 bytes crossed in that direction."""
    receive, transmit = ratios(WireBytes(on_wire, 700, 5_000_000, 4_000), Payload(tcp4_bytes=1), Payload())
    assert (receive is not None) is known
    assert transmit is not None


def test_no_traffic_at_all_is_no_error() -> None:
    """Zero bytes and zero packets give records without a ratio."""
    assert coverage("eth0,eth1", WireBytes(0, 0, 0, 0), Payload(), Payload()) == (
        Coverage("eth0,eth1", "receive", None),
        Coverage("eth0,eth1", "transmit", None),
    )


@pytest.mark.parametrize(
    ("payload", "header_bytes"),
    [
        (Payload(), 66.0),
        (Payload(tcp4_bytes=1), 66.0),
        (Payload(tcp6_bytes=1), 86.0),
        (Payload(udp4_bytes=1), 42.0),
        (Payload(udp6_bytes=1), 62.0),
        (Payload(tcp4_bytes=5, udp4_bytes=15), 48.0),
    ],
)
def test_headers_follow_the_protocols(payload: Payload, header_bytes: float) -> None:
    """Ethernet 14, v4 20 or v6 40, TCP with timestamps 32 or UDP 8 bytes, mixed as the payload is."""
    assert mean_header_bytes(payload, Payload()) == header_bytes
    assert mean_header_bytes(Payload(), payload) == header_bytes


def test_counters_are_summed_over_the_interfaces_asked_for() -> None:
    """Growth counts, an interface that came or went does not, a counter set back counts from zero."""
    before = {
        "eth0": (100, 10, 1_000, 20),
        "eth1": (50, 5, 500, 50),
        "gone": (1, 1, 1, 1),
        "lo": (0, 0, 0, 0),
    }
    after = {
        "eth0": (160, 12, 1_500, 25),
        "eth1": (7, 1, 600, 51),
        "new": (9, 9, 9, 9),
        "lo": (99, 99, 99, 99),
    }
    assert wire_bytes(before, after, ("eth0", "eth1", "gone", "new")) == WireBytes(67, 3, 600, 6)
    assert wire_bytes(before, after, ()) == WireBytes(0, 0, 0, 0)


SIZES = st.integers(0, 10**13)


@settings(deadline=None)
@given(SIZES, st.integers(1, 10**9), SIZES, st.integers(1, 10**9))
def test_everything_explained_is_one(rx: int, rx_packets: int, tx: int, tx_packets: int) -> None:
    """Whatever the packets' sizes, attributing all payload gives 1 in each direction that says anything."""
    assume(rx + tx > 0)
    wire = wire_of(rx, rx_packets, tx, tx_packets)
    for ratio in ratios(wire, Payload(tcp4_bytes=rx), Payload(tcp4_bytes=tx)):
        assert ratio is None or ratio == pytest.approx(1.0)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 10**9), st.integers(0, 10**9))
def test_explaining_more_never_lowers_coverage(
    rx: int, tx: int, received: int, more: int, rx_packets: int, tx_packets: int
) -> None:
    """The ratio is never negative and grows with the attributed bytes, in both directions."""
    wire = WireBytes(rx, rx_packets, tx, tx_packets)
    low = ratios(wire, Payload(tcp4_bytes=received), Payload())
    high = ratios(wire, Payload(tcp4_bytes=received + more), Payload())
    for less, greater in zip(low, high, strict=True):
        assert (less is None) == (greater is None)
        if less is not None and greater is not None:
            assert 0 <= less <= greater * (1 + 1e-9)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(1, 10**9), st.integers(2, 50))
def test_coverage_does_not_depend_on_the_window_s_length(
    rx: int, tx: int, received: int, packets: int, factor: int
) -> None:
    """All figures times a factor give the same ratio."""
    one = ratios(WireBytes(rx, packets, tx, packets), Payload(udp6_bytes=received), Payload())
    wide = WireBytes(rx * factor, packets * factor, tx * factor, packets * factor)
    many = ratios(wide, Payload(udp6_bytes=received * factor), Payload())
    for short, long in zip(one, many, strict=True):
        if short is not None:
            assert long == pytest.approx(short)


ROUTES = [
    (ipaddress.ip_network(network), interface)
    for network, interface in [
        ("192.0.2.2/32", "lo"),
        ("2001:db8::2/128", "lo"),
        ("10.8.0.0/24", "wg0"),
        ("172.17.0.0/16", "docker0"),
        ("0.0.0.0/0", "eth0"),
        ("::/0", "eth0"),
    ]
]


@pytest.mark.parametrize(
    ("address", "crosses"),
    [
        ("198.51.100.7", True),
        ("10.0.0.5", True),
        ("2001:db8::7", True),
        ("::ffff:198.51.100.7", True),
        ("192.0.2.2", False),
        ("2001:db8::2", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.53", False),
        ("172.17.0.2", False),
        ("::ffff:172.17.0.2", False),
        ("10.8.0.9", False),
        ("", False),
        ("example.org", False),
    ],
)
def test_only_peers_behind_a_counted_interface_count(address: str, crosses: bool) -> None:
    """Own addresses, containers on a bridge and peers in a tunnel do not cross the interface."""
    assert Reach(ROUTES, ("eth0",)).crosses(address) is crosses


def test_without_a_route_nothing_crosses() -> None:
    """A peer no route leads to is not behind the interface."""
    assert not Reach([], ("eth0",)).crosses("198.51.100.7")
    assert not Reach(ROUTES[4:5], ("eth0",)).crosses("2001:db8::7")
