# SPDX-License-Identifier: Apache-2.0
"""state.dns_message: answers off the wire, and whatever else comes from port 53."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernob.state.dns_message import Answer, parse
from tests.fuzz.dns_fuzz import check

CORPUS = sorted((Path(__file__).parents[1] / "fixtures" / "dns").glob("*"))
POINTER = b"\xc0\x0c"
QUESTION = b"\x03API\x07example\x00\x00\x01\x00\x01"


def head(answers: int, flags: int = 0x8180, questions: int = 1) -> bytes:
    return struct.pack(">HHHHHH", 7, flags, questions, answers, 0, 0)


def record(kind: int, data: bytes, name: bytes = POINTER, ttl: int = 60, family: int = 1) -> bytes:
    return name + struct.pack(">HHIH", kind, family, ttl, len(data)) + data


def a(last: int, **options: object) -> bytes:
    return record(1, bytes((10, 0, 0, last)), **options)  # type: ignore[arg-type]


def test_addresses_of_both_families_stand_under_the_questions_name() -> None:
    """The name as it was asked, its lower-case wire form, every address once, the shortest time to live."""
    six = record(28, bytes.fromhex("fd000000000000000000000000000001"), ttl=5)
    assert parse(head(4) + QUESTION + a(1) + a(2) + a(1) + six) == Answer(
        b"API.example", b"\x03api\x07example", ("10.0.0.1", "10.0.0.2", "fd00::1"), 5
    )


def test_an_alias_leads_to_addresses_under_the_first_name() -> None:
    """CNAME chains, compressed and not, in any order; a service behind a CDN keeps its name."""
    first, second = b"\x02lb\x03cdn\x00", b"\x01x" + b"\xc0\x10"
    chain = record(5, first, ttl=300) + record(5, second, name=b"\x02LB\x03cdn\x00", ttl=20)
    answer = parse(head(3) + QUESTION + a(9, name=b"\x01x\x07EXAMPLE\x00") + chain)
    assert answer == Answer(b"API.example", b"\x03api\x07example", ("10.0.0.9",), 20)


def test_records_that_the_question_does_not_lead_to_name_nothing() -> None:
    """A hostile server cannot have other addresses called by this name, nor by the way other names."""
    assert parse(head(1) + QUESTION + a(6, name=b"\x04bank\x07example\x00")) is None
    answer = parse(head(2) + QUESTION + a(6, name=b"\x04bank\x07example\x00") + a(1))
    assert answer is not None
    assert answer.addresses == ("10.0.0.1",)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        head(1)[:11],
        head(1, flags=0x0100) + QUESTION + a(1),  # a question
        head(0, flags=0x8183) + QUESTION,  # NXDOMAIN
        head(1, flags=0x8182) + QUESTION + a(1),  # SERVFAIL
        head(1, flags=0xA800) + QUESTION + a(1),  # an update's answer
        head(1, questions=2) + QUESTION * 2 + a(1),
        head(1) + b"\x00\x00\x01\x00\x01" + a(1),  # of the root
        head(1) + POINTER + b"\x00\x01\x00\x01" + a(1),  # a name that points at itself
        head(1) + b"\xc0\xff\x00\x01\x00\x01" + a(1),  # and one that points behind
        head(1) + b"\x80ab\x00\x00\x01\x00\x01" + a(1),
        head(1) + b"\x3f" + QUESTION,
        head(1) + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01" + a(1),  # 256 bytes
        head(2) + QUESTION + record(5, POINTER),  # an alias of itself
        head(1) + QUESTION + record(1, b"\x0a\x00\x00"),  # an address of three bytes
        head(1) + QUESTION + a(1, family=3),  # Chaos
        head(1) + QUESTION + a(1)[:-1],
        head(65535) + QUESTION,
    ],
)
def test_what_is_no_answer_about_addresses_is_none(message: bytes) -> None:
    """Questions, errors, damage, loops: nothing is read out of them."""
    assert parse(message) is None


def test_a_message_cut_short_still_says_what_it_has() -> None:
    """TC, or more than fits into what is copied."""
    answer = parse(head(3, flags=0x8380) + QUESTION + a(1) + a(2) + a(3)[:7])
    assert answer is not None
    assert answer.addresses == ("10.0.0.1", "10.0.0.2")


def test_a_time_to_live_with_its_highest_bit_is_zero() -> None:
    """RFC 2181, 8."""
    answer = parse(head(1) + QUESTION + a(1, ttl=0x80000001))
    assert answer is not None
    assert answer.ttl_s == 0


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_fuzzing_found_stays_harmless(path: Path) -> None:
    """The corpus of a coverage-guided fuzzer."""
    check(path.read_bytes())


LABELS = st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=4)


@given(st.binary(max_size=600) | st.binary(max_size=300).map(lambda tail: head(5) + QUESTION + tail))
def test_no_message_does_harm(message: bytes) -> None:
    """Any bytes, and any bytes behind a good beginning."""
    check(message)


ADDRESSES = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6, network="2000::/3").map(str)


@given(
    LABELS.filter(lambda labels: sum(map(len, labels)) < 200), st.lists(ADDRESSES, max_size=8, unique=True)
)
def test_what_was_written_is_read(labels: list[bytes], addresses: list[str]) -> None:
    """Round trip, whatever bytes labels have."""
    name = b"".join(bytes((len(label),)) + label for label in labels)
    parsed = [ipaddress.ip_address(each) for each in addresses]
    records = b"".join(record(1 if each.version == 4 else 28, each.packed) for each in parsed)
    answer = parse(head(len(addresses)) + name + b"\x00\x00\x01\x00\x01" + records)
    assert answer == (Answer(b".".join(labels), name.lower(), tuple(addresses), 60) if addresses else None)


def test_v4_addresses_that_stand_as_v6_are_v4() -> None:
    """As sockets are told, which the kernel side folds likewise."""
    answer = parse(head(1) + QUESTION + record(28, bytes(10) + b"\xff\xff\x0a\x00\x00\x01"))
    assert answer is not None
    assert answer.addresses == ("10.0.0.1",)
