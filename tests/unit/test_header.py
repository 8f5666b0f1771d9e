# SPDX-License-Identifier: Apache-2.0
"""What stands around the rows: host and totals, leader, losses, trends, position, and why there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from kernob.answer import select
from kernob.model import Coverage, HookReport, ProbeState
from kernob.ui.header import History, Status, empty, header, health, position
from kernob.view import Query, Sort, View
from tests.unit.fake_agent import flow, snapshot

ATTACHED = HookReport("traffic", "send", ProbeState.ATTACHED, "raw_tp", ())
FAILED = replace(ATTACHED, state=ProbeState.FAILED)


def a_view(query: Query | None = None, **changes: object) -> View:
    view = select(snapshot(flow(1, rate=30.0), flow(2, "wget", rate=10.0)), query or Query())
    return replace(view, **changes)  # type: ignore[arg-type]


def lines(view: View, history: History, width: int = 80) -> list[str]:
    return [line.plain for line in header(view, history, Status.LIVE, width)]


def test_header() -> None:
    """Three lines: host, window and state; totals; who owns the network and how complete that is."""
    view = a_view(
        losses={"map_full": 0},
        coverage=(
            Coverage("eth0", "transmit", 0.991),
            Coverage("eth1", "transmit", 0.5),
            Coverage("eth0", "receive", None),
        ),
    )
    history = History()
    history.observe(view)
    first, second, third = lines(view, history)
    assert first.startswith(" kernob  web-01 ")
    assert first.endswith("  LIVE ")
    assert "window 1 s  counting for 1s" in first
    assert second.startswith(" TX    40 B/s ")
    assert second.endswith(" 2 flows  2 processes ")
    assert third.startswith(" busiest curl.service 75%  ")
    assert third.endswith("  explained tx 50%  lost 0 ")
    assert [len(line) for line in (first, second, third)] == [80, 80, 80]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_header_fits(width: int) -> None:
    """No line is longer than the screen, however long the names are."""
    view = a_view(host="h" * 300, losses={"x" * 40: 10**9, "y": 3}, hooks=(FAILED,))
    history = History()
    history.observe(replace(view, leader=replace(view.leader, name="s" * 300)))  # type: ignore[type-var]
    assert all(cell_len(line) <= width for line in lines(view, history, width))
    assert cell_len(position(view, 1, 2, width).plain) <= width


def test_losses_are_red_only_where_there_are_some() -> None:
    """Nothing in the header is red until something is lost or a probe failed; then it says so first."""
    fine = health(a_view(hooks=(ATTACHED,), losses={"map_full": 0}), 60)
    assert (fine.plain, [str(span.style) for span in fine.spans]) == ("lost 0 ", ["dim"])
    wire = (Coverage("eth0", "transmit", 0.9),)
    bad = a_view(hooks=(ATTACHED, FAILED), losses={"ring_full": 4, "map_full": 1203}, coverage=wire)
    assert health(bad, 90).plain == (
        "explained tx 90%  1 of 2 PROBES FAILED  LOST map_full 1.20k, ring_full 4 "
    )
    assert health(bad, 60).plain == "1 of 2 PROBES FAILED  LOST map_full 1.20k, ring_full 4 "
    assert health(bad, 40).plain == "1 of 2 PROBES FAILED  LOST 1.21k "
    assert [str(span.style) for span in health(bad, 40).spans] == ["bold red", "bold red"]


def test_leader_is_known_since() -> None:
    """A leader that led from the start leads "for over"; one that took over leads "since" its first tick."""
    history = History()
    view = a_view()
    assert view.leader is not None
    for second, name in ((10, "a"), (14, "a"), (20, "b"), (25, "b"), (30, "a")):
        history.observe(replace(view, time_unix_ns=second * 10**9, leader=replace(view.leader, name=name)))
        lead = history.lead
        assert lead is not None
        known = None if lead.since_unix_ns is None else lead.since_unix_ns // 10**9
        assert (name, known, lead.for_s) == {
            10: ("a", None, 0),
            14: ("a", None, 4),
            20: ("b", 20, 0),
            25: ("b", 20, 5),
            30: ("a", 30, 0),
        }[second]
    history.observe(replace(view, leader=None))
    assert history.lead is None


def test_trends() -> None:
    """Bars show the last rates against the highest of them; a tick seen twice counts once."""
    history = History()
    view = a_view()
    for second, rate in ((1, 0.0), (2, 50.0), (2, 50.0), (3, 100.0)):
        total = replace(view.total, tx_rate=rate, rx_rate=0.0)
        history.observe(replace(view, time_unix_ns=second * 10**9, total=total))
    assert history.trends(5) == ("▁▅█  ", "▁▁▁  ")
    assert history.trends(2) == ("▅█", "▁▁")
    assert history.trends(0) == ("", "")


def test_position() -> None:
    """The line below the rows counts what is beyond the screen, with its traffic."""
    flows = [flow(pid, rate=10.0) for pid in range(10_000)]
    view = select(snapshot(*flows), Query(limit=300, filter="curl", sort=Sort.TX_TOTAL, reverse=True))
    assert " ".join(position(view, 1, 17, 120).plain.split()) == (
        "flows 1-17 of 10,000 +9,700 more: 97.0 kB/s, 10.7 MB filter curl by tx total, reversed"
    )
    assert position(select(snapshot(), Query()), 0, 0, 30).plain.split() == ["0", "flows", "by", "share"]


def test_empty() -> None:
    """Without rows the screen says whether nothing moved, nothing matched, or nothing is attached."""
    nothing = replace(select(snapshot(), Query()), hooks=(ATTACHED,), time_unix_ns=252 * 10**9)
    assert empty(nothing).splitlines() == [
        "No process has sent or received a byte for 4m 12s, since Kernob began to count.",
        "1 of 1 probes are attached; the first bytes will show here.",
    ]
    assert "1 of 2 probes are attached (see `kernob doctor`)" in empty(
        replace(nothing, hooks=(ATTACHED, FAILED))
    )
    assert empty(replace(nothing, hooks=(FAILED,))).startswith("No probe is attached")
    filtered = select(snapshot(flow(1)), Query(filter="[b]no"))
    assert empty(filtered).splitlines() == [
        "No flow matches “[b]no”; 1 are hidden by the filter.",
        "Esc shows them again.",
    ]
