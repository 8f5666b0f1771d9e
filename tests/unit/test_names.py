# SPDX-License-Identifier: Apache-2.0
"""Names that processes choose themselves become harmless, and addresses get their class."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernob.model import PeerClass
from kernob.state.names import Classifier, ClassRule, peer_class, sanitize, split_args

BAD = "\N{REPLACEMENT CHARACTER}"

HOSTILE_TEXT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(
            "\0\n\r\t\x1b\x7f\x85 \u00a0\u3000\u200b\u200e\u202e\u2066\ufeff\u2028\ud800\u0301…\ufffd"
        ),
    ),
    max_size=200,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("nginx", "nginx"),
        (b"nginx", "nginx"),
        (b"nginx\0\0\0leftover", "nginx"),
        ("", "?"),
        (b"", "?"),
        (b"\0\0\0", "?"),
        ("   ", "?"),
        ("\u00a0\u2003", "?"),
        ("  web   server ", "web server"),
        ("a\nb", f"a{BAD}b"),
        ("a\r\nb", f"a{BAD}{BAD}b"),
        ("\x1b[31mred\x1b[0m", f"{BAD}[31mred{BAD}[0m"),
        ("\x9b2Jgone", f"{BAD}2Jgone"),
        ("\x1b]0;title\x07", f"{BAD}]0;title{BAD}"),
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9", f"caf{BAD}"),
        (b"\xff\xfe\xc3", BAD * 3),
        ("invoice\u202excod.exe", f"invoice{BAD}xcod.exe"),
        ("a\u2066b\u2069", f"a{BAD}b{BAD}"),
        ("ng\u200binx", f"ng{BAD}inx"),
        ("ng\u00adinx", f"ng{BAD}inx"),
        ("\ufeffnginx", f"{BAD}nginx"),
        ("a\ud800b", f"a{BAD}b"),
        ("x\udcffy", f"x{BAD}y"),
        ("a\ue000b", f"a{BAD}b"),
        ("a\u3164b", f"a{BAD}b"),
        ("a\u2028b", f"a{BAD}b"),
        ("a\u00a0b\u3000c", "a b c"),
        ("e\u0301t", "e\u0301t"),
        ("e\u0301\u0301\u0301\u0301\u0301t", f"e\u0301\u0301{BAD}\u0301\u0301t"),
        ("\u0301a", f"{BAD}a"),
        ("データベース", "データベース"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_hostile_text_becomes_one_visible_line(raw: bytes | str, expected: str) -> None:
    """What could move a cursor, hide or reorder text is replaced, all else stays."""
    assert sanitize(raw) == expected


@pytest.mark.parametrize(
    ("raw", "limit", "expected"),
    [
        ("x" * 64, 64, "x" * 64),
        ("x" * 65, 64, "x" * 63 + "…"),
        ("abc defgh", 5, "abc…"),
        ("п" * 64, 64, "п" * 64),
        ("語" * 64, 64, "語" * 41 + "…"),  # 41 * 3 + 3 = 126 of 128 bytes
        ("😀" * 64, 8, "😀" * 3 + "…"),  # 3 * 4 + 3 = 15 of 16 bytes
        ("語" * 42, 64, "語" * 42),
    ],
)
def test_long_text_is_cut_by_characters_and_bytes(raw: str, limit: int, expected: str) -> None:
    """At most `limit` characters and twice as many bytes remain, and the cut shows."""
    cut = sanitize(raw, limit)
    assert cut == expected
    assert len(cut) <= limit
    assert len(cut.encode()) <= 2 * limit


def test_a_limit_without_room_for_the_mark_is_refused() -> None:
    """A limit below four characters raises instead of breaking its promise of bytes."""
    with pytest.raises(ValueError, match="at least 4"):
        sanitize("x", 3)


@settings(deadline=None)
@given(st.one_of(HOSTILE_TEXT, st.binary(max_size=200)), st.integers(4, 80))
def test_sanitising_holds_its_promises_for_any_input(raw: bytes | str, limit: int) -> None:
    """The result is bounded, encodable, visible, not empty, and sanitising it again changes nothing."""
    text = sanitize(raw, limit)
    assert 1 <= len(text) <= limit
    assert len(text.encode()) <= 2 * limit
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)
    assert text == text.strip()
    assert sanitize(text, limit) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", ()),
        (b"\0\0", ()),
        (b"sleep\x0010\0", ("sleep", "10")),
        (b"node\0\0-x\0", ("node", "", "-x")),
        (b"nginx: worker process\0\0\0\0\0", ("nginx: worker process",)),
        (b"postgres: writer", ("postgres: writer",)),
        (b"sh\0-c\0a\nb\0", ("sh", "-c", f"a{BAD}b")),
    ],
)
def test_command_lines_split_at_nul(raw: bytes, expected: tuple[str, ...]) -> None:
    """Arguments end at NUL; the padding after a title a program wrote over them is no argument."""
    assert split_args(raw) == expected


def test_a_full_buffer_marks_its_last_argument() -> None:
    """A command line that fills its buffer without a NUL at the end was cut, and says so."""
    raw = b"python3\0/srv/" + b"x" * 300
    assert split_args(raw[:192]) == ("python3", "/srv/" + "x" * 179 + "…")
    assert split_args(raw[:191] + b"\0") == ("python3", "/srv/" + "x" * 178)
    assert split_args(raw[:20], 20) == ("python3", "/srv/" + "x" * 7 + "…")


@settings(deadline=None)
@given(st.binary(max_size=192))
def test_splitting_never_fails_and_keeps_every_argument_clean(raw: bytes) -> None:
    """Whatever the buffer holds, each argument is empty or sanitised."""
    for arg in split_args(raw):
        assert arg == "" or arg.removesuffix("…") == "" or sanitize(arg, 256) == arg


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", PeerClass.LOCALHOST),
        ("127.255.0.9", PeerClass.LOCALHOST),
        ("::1", PeerClass.LOCALHOST),
        ("::ffff:127.0.0.1", PeerClass.LOCALHOST),
        ("10.0.0.1", PeerClass.INTERNAL),
        ("172.16.0.1", PeerClass.INTERNAL),
        ("172.31.255.255", PeerClass.INTERNAL),
        ("192.168.1.1", PeerClass.INTERNAL),
        ("::ffff:192.168.1.1", PeerClass.INTERNAL),
        ("100.64.0.1", PeerClass.INTERNAL),
        ("100.127.255.255", PeerClass.INTERNAL),
        ("169.254.169.254", PeerClass.INTERNAL),
        ("fe80::1", PeerClass.INTERNAL),
        ("fe80::1%eth0", PeerClass.INTERNAL),
        ("fd12:3456::1", PeerClass.INTERNAL),
        ("fc00::1", PeerClass.INTERNAL),
        ("224.0.0.251", PeerClass.INTERNAL),
        ("239.255.255.250", PeerClass.INTERNAL),
        ("255.255.255.255", PeerClass.INTERNAL),
        ("ff02::fb", PeerClass.INTERNAL),
        ("172.15.255.255", PeerClass.EXTERNAL),
        ("172.32.0.0", PeerClass.EXTERNAL),
        ("100.63.255.255", PeerClass.EXTERNAL),
        ("100.128.0.0", PeerClass.EXTERNAL),
        ("169.253.255.255", PeerClass.EXTERNAL),
        ("192.0.2.1", PeerClass.EXTERNAL),
        ("233.252.0.1", PeerClass.EXTERNAL),
        ("2001:db8::1", PeerClass.EXTERNAL),
        ("::ffff:8.8.8.8", PeerClass.EXTERNAL),
        ("ff0e::1", PeerClass.EXTERNAL),
        ("0.0.0.0", PeerClass.UNKNOWN),
        ("::", PeerClass.UNKNOWN),
        ("::ffff:0.0.0.0", PeerClass.UNKNOWN),
        ("", PeerClass.UNKNOWN),
        ("example.org", PeerClass.UNKNOWN),
        ("10.0.0", PeerClass.UNKNOWN),
    ],
)
def test_every_address_has_its_default_class(address: str, expected: PeerClass) -> None:
    """The default rules of MAP.md decide, v4-mapped addresses as v4; both sides of each bound are right."""
    assert peer_class(address) is expected


def test_the_first_rule_that_holds_an_address_decides() -> None:
    """Other rules replace the default ones; what none of them holds is unknown."""
    classifier = Classifier(
        [
            ClassRule("198.51.100.0/28", PeerClass.SELF_HOSTED),
            ClassRule("198.51.100.0/24", PeerClass.EXTERNAL),
        ]
    )
    assert classifier.classify("198.51.100.7") is PeerClass.SELF_HOSTED
    assert classifier.classify("198.51.100.16") is PeerClass.EXTERNAL
    assert classifier.classify("203.0.113.1") is PeerClass.UNKNOWN


def test_a_rule_that_is_no_network_is_refused() -> None:
    """A network with bits beyond its prefix raises when the classifier is made, not later."""
    with pytest.raises(ValueError, match="host bits"):
        Classifier([ClassRule("10.0.0.1/8", PeerClass.INTERNAL)])


@settings(deadline=None)
@given(st.ip_addresses())
def test_every_address_is_in_some_class_and_mapping_changes_none(address: object) -> None:
    """No address is refused, and a v4 address and its v4-mapped form are in one class."""
    text = str(address)
    assert isinstance(peer_class(text), PeerClass)
    if ":" not in text:
        assert peer_class("::ffff:" + text) is peer_class(text)
