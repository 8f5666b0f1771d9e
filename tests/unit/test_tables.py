# SPDX-License-Identifier: Apache-2.0
"""What the rows of a screen say: figures that keep their width, names that cannot harm, lines that fit."""

from __future__ import annotations

import doctest
from dataclasses import replace
from datetime import timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from kernob.answer import select
from kernob.model import PeerClass, Role, TcpFacts, Transport
from kernob.ui import tables
from kernob.ui.tables import (
    cell,
    clean,
    clock,
    describe,
    destination,
    fit,
    human,
    layout,
    percent,
    title,
    who,
)
from kernob.view import Group, Query, Row, Sort
from tests.unit.fake_agent import flow, snapshot


def a_row(**changes: object) -> Row:
    row = Row(
        pid=812,
        executable="nginx",
        service="nginx.service",
        alive=True,
        role="client",
        transport="tcp",
        address="192.0.2.1",
        port=443,
        peer="192.0.2.1",
        peer_class="external",
        flows=1,
        tx_bytes=0,
        rx_bytes=0,
        tx_rate=0.0,
        rx_rate=0.0,
        share=0.0,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_doctests() -> None:
    """The examples in the docstrings are right."""
    assert doctest.testmod(tables).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.3, "<1"),
        (1, "1"),
        (999, "999"),
        (999.5, "1.00k"),
        (1_000, "1.00k"),
        (9_994, "9.99k"),
        (9_995, "10.0k"),
        (9_996, "10.0k"),
        (99_940, "99.9k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (81_240_000, "81.2M"),
        (2**63, "9.22E"),
    ],
)
def test_human(value: float, text: str) -> None:
    """Bytes stand in three digits, rounded once, with the next prefix from 1000 on."""
    assert human(value) == text


@settings(deadline=None)
@given(st.floats(0, 9.99e20))
def test_figures_never_outgrow_their_column(value: float) -> None:
    """Any figure fits the narrow column (5 cells) and, with its unit, the wide one (7)."""
    assert cell_len(human(value)) <= 5
    assert cell_len(human(value, "B")) <= 7


def test_percent() -> None:
    """A share that is not nothing is never shown as 0%."""
    assert [percent(share) for share in (0, 0.0001, 0.005, 0.0149, 0.5, 1)] == [
        "0%",
        "<1%",
        "<1%",
        "1%",
        "50%",
        "100%",
    ]


def test_clock() -> None:
    """Times are shown in the zone asked for."""
    assert clock(1_700_000_000 * 10**9, timezone.utc) == "22:13:20"
    assert clock(1_700_000_000 * 10**9, timezone(timedelta(hours=2))) == "00:13:20"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x9b31mx", "�[2J�31mx"),
        ("a\nb\tc\x00", "a�b�c�"),
        ("\u202egnp.exe", "�gnp.exe"),
        ("e\u0301\u0301\u0301", "é"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("数据", "数据"),
        ("\ud800", "�"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    """What a terminal would obey, hide or pile up is replaced or dropped; markup is plain text."""
    assert clean(text) == shown


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 5, "abc  "),
        ("abcdef", 5, "abcd…"),
        ("数据库", 6, "数据库"),
        ("数据库", 5, "数据…"),
        ("数据库", 4, "数… "),
        ("abc", 0, ""),
        ("abc", 1, "…"),
    ],
)
def test_fit(text: str, width: int, shown: str) -> None:
    """Text is cut or padded to a width in cells, of which wide characters take two."""
    assert fit(text, width) == shown


def test_fit_keeps_both_ends_of_an_address() -> None:
    """Cut in the middle, an address keeps its port."""
    assert fit("→[2001:db8:85a3::7334]:443", 17, middle=True) == "→[2001:d…334]:443"


@settings(deadline=None)
@given(st.text(st.characters(), max_size=300), st.integers(0, 80), st.booleans(), st.booleans())
def test_fit_is_exact(text: str, width: int, right: bool, middle: bool) -> None:
    """Whatever the text, the result takes exactly the width and prints on one line."""
    shown = fit(text, width, right=right, middle=middle)
    assert cell_len(shown) == width
    assert shown.isprintable()


@pytest.mark.parametrize("group", list(Group))
@pytest.mark.parametrize("width", [60, 72, 80, 103, 104, 120, 250])
@settings(deadline=None)
@given(name=st.text(st.characters(), max_size=300), rate=st.floats(0, 1e18), count=st.integers(0, 2**62))
def test_lines_fill_the_screen(group: Group, width: int, name: str, rate: float, count: int) -> None:
    """Titles and rows take exactly the screen's width, whatever names and figures they hold."""
    rows = snapshot(flow(4_194_304, name, rate, tx_bytes=count, service=name[::-1], peer=name))
    for sort in (Sort.RATE, Sort.TOTAL, Sort.PROCESS, Sort.DESTINATION):
        view = select(rows, Query(group=group, sort=sort))
        columns = layout(width, group)
        assert cell_len(" ".join(title(column, view) for column in columns)) == width
        wide = width >= tables.WIDE_COLUMNS
        assert cell_len(" ".join(cell(view.rows[0], column, wide=wide) for column in columns)) == width


def test_columns_at_80() -> None:
    """80 cells hold share, name, PID, destination, score, failures and both rates; 84 the totals, too."""
    keys = [
        *("share", "who", "pid", "destination", "score", "faults", "tx_rate", "rx_rate"),
        *("tx_bytes", "rx_bytes"),
    ]
    for width, expected in ((84, keys), (80, keys[:8]), (72, keys[:8])):
        assert [column.key for column in layout(width, Group.FLOW)] == expected
    assert [column.key for column in layout(66, Group.FLOW)][-3:] == ["score", "tx_rate", "rx_rate"]
    assert [column.key for column in layout(60, Group.FLOW)][-3:] == ["destination", "tx_rate", "rx_rate"]


@pytest.mark.parametrize(
    ("score", "text"), [(None, "      "), (0.412, "  0.41"), (0.997, "  0.99"), (1.0, "  1.00")]
)
def test_a_score_is_two_digits(score: float | None, text: str) -> None:
    """Nothing where there is none; only what is perfect is 1."""
    (column,) = (column for column in layout(80, Group.FLOW) if column.key == "score")
    assert cell(a_row(score=score), column, wide=False) == text
    assert ("score" in describe(a_row(score=score))) == (score is not None)


def test_an_address_of_any_length_fits_at_80() -> None:
    """The longest IPv4 address with a port is not cut."""
    (column,) = (column for column in layout(80, Group.FLOW) if column.key == "destination")
    text = cell(a_row(address="192.168.100.200", port=5432), column, wide=False)
    assert text.rstrip() == "→192.168.100.200:5432"


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        (TcpFacts(9), "     "),
        (TcpFacts(9, failed=2), "   ✗2"),
        (TcpFacts(9, failed=2, resets=3, drops=1), "   ✗5"),
        (TcpFacts(9, resets=3, drops=4), "   ✗4"),
        (TcpFacts(9, failed=1, retransmits=7), "   ✗1"),
        (TcpFacts(9, retransmits=127), " ↻127"),
        (TcpFacts(9, failed=999_999), "✗999k"),
        (TcpFacts(9, failed=10**9), "  ✗1G"),
    ],
)
def test_failures_are_marked(facts: TcpFacts, mark: str) -> None:
    """✗ and how many failed, were reset or cut off; only where none did, ↻ and the segments resent."""
    (column,) = (column for column in layout(80, Group.FLOW) if column.key == "faults")
    assert cell(a_row(tcp_window=facts), column, wide=False) == mark


def test_the_line_below_counts_what_happened() -> None:
    """Uncut, since the flow is known."""
    said = describe(a_row(tcp=TcpFacts(1200, 5, 127, 3, 1)))
    assert "1,200 connections, 5 failed, 1 dropped, 3 resets, 127 segments resent" in said
    assert "connections" not in describe(a_row())


def test_row_at_80() -> None:
    """A whole row, as an operator reads it."""
    row = a_row(
        executable="rsync",
        service="backup.service",
        tx_rate=81.24e6,
        rx_rate=12_100,
        tx_bytes=412_000_000_000,
        rx_bytes=61_000_000,
        share=0.861,
        alive=False,
        tcp_window=TcpFacts(failed=12),
        score=0.41,
    )
    line = " ".join(cell(row, column, wide=False) for column in layout(86, Group.FLOW))
    assert line == "   86% backup/rsync     812† →192.0.2.1:443         0.41   ✗12 81.2M 12.1k  412G 61.0M"


def test_share_bar() -> None:
    """The bar has an eighth of a cell per 1/64 of all traffic, and a percentage beside it."""
    column = layout(120, Group.FLOW)[0]
    bars = [cell(a_row(share=share), column, wide=True) for share in (0, 1 / 64, 0.5, 1, 1.02)]
    assert bars == [
        "             0%",
        "▏            2%",
        "████        50%",
        "████████   100%",
        "████████   102%",
    ]


@pytest.mark.parametrize(
    ("sort", "reverse", "marked"),
    [
        (Sort.RATE, False, ["▼SHARE"]),
        (Sort.RATE, True, ["▲SHARE"]),
        (Sort.TX_RATE, False, ["▼TX/s"]),
        (Sort.TOTAL, False, ["▼TX", "▼RX"]),
        (Sort.PROCESS, False, ["SERVICE/PROC▲"[-1]]),
        (Sort.PID, True, ["▼PID"]),
        (Sort.SCORE, False, ["▲SCORE"]),
    ],
)
def test_titles_show_the_order(sort: Sort, *, reverse: bool, marked: list[str]) -> None:
    """The title of the column that orders the rows carries ▼ (falling) or ▲ (rising)."""
    view = select(snapshot(flow(1, rate=30.0), flow(2, "wget", rate=10.0)), Query(sort=sort, reverse=reverse))
    titles = [title(column, view).strip() for column in layout(84, Group.FLOW)]
    arrows = [text for text in titles if "▼" in text or "▲" in text]
    assert len(arrows) == len(marked)
    assert all(want in text for want, text in zip(marked, arrows, strict=True))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "→192.0.2.1:443"),
        ({"transport": "udp"}, "→192.0.2.1:443 udp"),
        ({"address": "2001:db8::1"}, "→[2001:db8::1]:443"),
        ({"role": "server", "peer": "198.51.100.7"}, "←198.51.100.7 :443"),
        ({"role": "server", "peer": ""}, "← :443 on 192.0.2.1"),
        ({"role": "unknown"}, "·192.0.2.1:443"),
        ({"address": "", "port": 0, "transport": "udp"}, "udp, no address"),
    ],
)
def test_destination(changes: dict[str, object], shown: str) -> None:
    """An arrow says who opened the connection; a server's row names the client and our port."""
    assert destination(a_row(**changes)) == shown


@pytest.mark.parametrize(
    ("service", "executable", "shown"),
    [
        ("nginx.service", "nginx", "nginx"),
        ("backup.service", "rsync", "backup/rsync"),
        ("", "curl", "curl"),
        ("orders.py", "", "orders.py"),
        ("", "", ""),
    ],
)
def test_who(service: str, executable: str, shown: str) -> None:
    """Service and program stand in one name where there is no room for two, and once if they agree."""
    assert who(a_row(service=service, executable=executable)) == shown


def test_describe() -> None:
    """The line under the table says everything the columns had no room for."""
    assert (
        describe(a_row(executable="rsync", service="backup.service", alive=False))
        == "rsync[812] (ended)  service backup.service  tcp client →192.0.2.1:443 (external)"
    )
    server = a_row(role="server", address="10.0.0.5", peer="10.0.0.9", peer_class="internal")
    assert (
        describe(server)
        == "nginx[812]  service nginx.service  tcp server ←10.0.0.9 :443 at 10.0.0.5 (internal)"
    )
    udp = a_row(service="nginx", transport="udp", role="unknown", address="", port=0, peer_class="unknown")
    assert describe(udp) == "nginx[812]  udp no address"
    assert describe(a_row(executable="", service="web", transport="", address="", port=0, flows=1200)) == (
        "service web  1,200 flows"
    )


def test_kinds_of_flow_reach_the_screen() -> None:
    """Role, transport and class of a flow arrive as the words the columns use."""
    full = snapshot(
        flow(1, role=Role.SERVER, transport=Transport.UDP, peer="10.0.0.9", peer_class=PeerClass.INTERNAL)
    )
    assert describe(select(full, Query()).rows[0]).endswith(
        "udp server ←10.0.0.9 :443 at 192.0.2.1 (internal)"
    )
