# SPDX-License-Identifier: Apache-2.0
"""Which rows answer a query, and what becomes of queries and answers on the wire."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernob.answer import encode_answer, select
from kernob.model import Dependency, Role, TcpFacts, Transport
from kernob.view import (
    Group,
    Query,
    Refusal,
    Request,
    Sort,
    View,
    decode_answer,
    decode_request,
    encode_view,
)
from tests.unit.fake_agent import flow, snapshot


def test_oversized_answers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer beyond the largest line is halved until it fits, and says what it left out."""
    monkeypatch.setattr("kernob.answer.MAX_VIEW_BYTES", 20_000)
    full = snapshot(*(flow(pid) for pid in range(1000)))
    answer = decode_answer(encode_answer(full, Query(limit=1000)))
    assert isinstance(answer, View)
    assert len(answer.rows) + answer.left_out.rows == 1000
    assert len(answer.rows) == 31


def test_groups_add_up_what_happened_and_order_by_it() -> None:
    """A destination's row sums its flows' facts; the most failures of the window come first."""
    full = snapshot(
        flow(1, "curl", tcp=TcpFacts(3, 1, 9), tcp_window=TcpFacts(1, 1)),
        flow(2, "wget", tcp=TcpFacts(2, 0, 1), tcp_window=TcpFacts(0, 0, 1)),
        flow(3, "rsync", 500.0, address="198.51.100.2", peer="198.51.100.2"),
    )
    view = select(full, Query(group=Group.DESTINATION, sort=Sort.FAULTS))
    assert [row.address for row in view.rows] == ["192.0.2.1", "198.51.100.2"]
    assert (view.rows[0].tcp, view.rows[0].tcp_window) == (TcpFacts(5, 1, 10), TcpFacts(1, 1, 1))
    by_flow = select(full, Query(sort=Sort.FAULTS))
    assert [row.executable for row in by_flow.rows] == ["curl", "wget", "rsync"]


def test_groups() -> None:
    """Rows are folded by process, service and destination; a filter counts only what it matched."""
    full = snapshot(
        flow(1, "curl", 10.0),
        flow(1, "curl", 30.0, address="198.51.100.2", peer="198.51.100.2"),
        flow(2, "wget", 60.0),
        flow(3, "nginx", 0.0, role=Role.SERVER, address="10.0.0.1", port=80, peer="10.0.0.8"),
        flow(3, "nginx", 0.0, role=Role.SERVER, address="10.0.0.1", port=80, peer="10.0.0.9"),
    )
    by_process = select(full, Query(group=Group.PROCESS))
    assert [(row.pid, row.flows, row.share, row.address) for row in by_process.rows] == [
        (2, 1, 0.6, ""),
        (1, 2, 0.4, ""),
        (3, 2, 0.0, ""),
    ]
    by_service = select(full, Query(group=Group.SERVICE, sort=Sort.SERVICE))
    assert [(row.service, row.pid, row.tx_bytes) for row in by_service.rows] == [
        ("curl.service", 0, 2000),
        ("nginx.service", 0, 2000),
        ("wget.service", 0, 1000),
    ]
    by_destination = select(full, Query(group=Group.DESTINATION))
    assert [(row.address, row.port, row.role, row.flows) for row in by_destination.rows] == [
        ("192.0.2.1", 443, "client", 2),
        ("198.51.100.2", 443, "client", 1),
        ("10.0.0.1", 80, "server", 2),
    ]
    filtered = select(full, Query(group=Group.PROCESS, filter="Curl 198.51"))
    assert [(row.pid, row.flows, row.tx_rate) for row in filtered.rows] == [(1, 1, 30.0)]
    assert (filtered.matched.rows, filtered.total.rows, filtered.processes) == (1, 5, 3)


def test_equal_rows_keep_their_order() -> None:
    """Idle rows stand in one order, whichever order the agent found them in."""
    flows = [flow(pid, name) for pid in (3, 1, 2) for name in ("b", "a")]
    orders = {
        tuple((row.executable, row.pid) for row in select(snapshot(*found), Query()).rows)
        for found in (flows, flows[::-1], flows[3:] + flows[:3])
    }
    assert orders == {(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3))}


@pytest.mark.parametrize("sort", list(Sort))
@pytest.mark.parametrize("reverse", [False, True])
def test_cut_keeps_the_first_rows(sort: Sort, *, reverse: bool) -> None:
    """The rows of a small limit are the first rows of a large one."""
    full = snapshot(*(flow(pid % 50, f"n{pid % 7}", rate=pid % 11, tx_bytes=pid % 13) for pid in range(400)))
    everything = select(full, Query(sort=sort, reverse=reverse, limit=400)).rows
    assert select(full, Query(sort=sort, reverse=reverse, limit=20)).rows == everything[:20]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_request(line: bytes) -> None:
    """Any bytes are a request or a ValueError."""
    with contextlib.suppress(ValueError):
        assert isinstance(decode_request(line), Request)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=300), st.floats(0, 1e15), st.integers(0, 2**62))
def test_views_survive_the_wire(name: str, rate: float, count: int) -> None:
    """Any name and number arrives as it left, on one line, with nothing in it a terminal obeys."""
    view = select(snapshot(flow(1, name, rate, tx_bytes=count)), Query())
    line = encode_view(view)
    assert decode_answer(line) == view
    assert line.decode().isprintable()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_answer(line: bytes) -> None:
    """Any bytes are an answer or a ValueError."""
    with contextlib.suppress(ValueError):
        assert isinstance(decode_answer(line), View | Refusal)


def test_scores_stand_by_the_flows_that_depend_and_order_them() -> None:
    """By service, destination and port; of a group the lowest; who serves or talks UDP has none."""
    full = snapshot(
        flow(1, "curl", 10.0),
        flow(2, "wget", 20.0, address="198.51.100.2"),
        flow(3, "nginx", 30.0, role=Role.SERVER),
        flow(1, "curl", 40.0, transport=Transport.UDP),
    )
    known = {(each.executable, each.address): each for each in full.flows}
    first, second = known["curl", "192.0.2.1"], known["wget", "198.51.100.2"]
    scores = {
        Dependency(first.service, first.address, first.port): 0.41236,
        Dependency(second.service, second.address, second.port): 0.9,
    }
    view = select(replace(full, scores=scores), Query(sort=Sort.SCORE))
    assert [row.score for row in view.rows] == [0.4124, 0.9, None, None]
    by_service = select(replace(full, scores=scores), Query(group=Group.SERVICE, sort=Sort.SCORE))
    assert min(row.score for row in by_service.rows if row.score is not None) == 0.4124
    assert [row.score for row in select(full, Query()).rows] == [None] * 4
