# SPDX-License-Identifier: Apache-2.0
"""Answers a query from a snapshot: filters, groups, sorts and cuts its flows, and sums what was left out.

A `Snapshot` and a `Query` enter; a `View`, or the line that says it, leaves. Called by `export.socket` (in
the agent) and by `ui.client` where the agent lives in the same process.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernob.model import NO_FACTS, Dependency, FlowRow, PeerClass, Role, Snapshot, TcpFacts, Transport
from kernob.view import (
    MAX_VIEW_BYTES,
    Group,
    Leader,
    Query,
    Row,
    Sort,
    Sums,
    View,
    encode_view,
    faults,
    printable,
)

_Entry = tuple[FlowRow, int, int, float, float, int, bool, TcpFacts, TcpFacts, float]
"""A flow that stands for its group; tx, rx bytes; tx, rx rate; number of flows; whether any is alive; what
happened to their connections ever, and in the window; the lowest score, _NO_SCORE where none has one."""

_NO_SCORE = 2.0
_Scores = Mapping[Dependency, float]

_ROLES = {Role.UNKNOWN: "unknown", Role.CLIENT: "client", Role.SERVER: "server"}
_TRANSPORTS = {Transport.TCP: "tcp", Transport.UDP: "udp"}

_GROUP_KEYS: dict[Group, Callable[[FlowRow], tuple[Any, ...]]] = {
    Group.PROCESS: lambda flow: (flow.pid, flow.executable, flow.service),
    Group.SERVICE: lambda flow: (flow.service or flow.executable,),
    Group.DESTINATION: lambda flow: (flow.role, flow.transport, flow.address, flow.port),
}

_SORT_KEYS: dict[Sort, Callable[[_Entry], Any]] = {
    Sort.RATE: lambda entry: -(entry[3] + entry[4]),
    Sort.TX_RATE: lambda entry: -entry[3],
    Sort.RX_RATE: lambda entry: -entry[4],
    Sort.TOTAL: lambda entry: -(entry[1] + entry[2]),
    Sort.TX_TOTAL: lambda entry: -entry[1],
    Sort.RX_TOTAL: lambda entry: -entry[2],
    Sort.PROCESS: lambda entry: entry[0].executable.casefold(),
    Sort.PID: lambda entry: entry[0].pid,
    Sort.SERVICE: lambda entry: entry[0].service.casefold(),
    Sort.FAULTS: lambda entry: tuple(
        -count for facts in (entry[8], entry[7]) for count in (faults(facts), facts.retransmits)
    ),
    Sort.DESTINATION: lambda entry: (entry[0].address, entry[0].port, entry[0].peer),
    Sort.SCORE: lambda entry: entry[9],
}


def select(snapshot: Snapshot, query: Query) -> View:
    """Answer `query` from `snapshot`. Rows with equal sort values keep one order from tick to tick."""
    words = query.filter.casefold().split()
    flows: Sequence[FlowRow] = snapshot.flows
    total = _sum_flows(flows)
    window_rate = total.tx_rate + total.rx_rate
    if words:
        flows = [flow for flow in flows if _matches(flow, words)]
    entries = _entries(flows, query.group, snapshot.scores)
    kept = _ordered(entries, query)
    matched = _sum_entries(entries)
    shown = _sum_entries(kept)
    return View(
        time_unix_ns=snapshot.time_unix_ns,
        started_unix_ns=snapshot.started_unix_ns,
        window_s=snapshot.window_s,
        host=printable(snapshot.host),
        group=query.group,
        sort=query.sort,
        reverse=query.reverse,
        filter=query.filter,
        processes=len({(flow.pid, flow.executable) for flow in snapshot.flows}),
        leader=_leader(snapshot.flows, window_rate),
        total=total,
        matched=matched,
        left_out=Sums(
            matched.rows - shown.rows,
            matched.tx_bytes - shown.tx_bytes,
            matched.rx_bytes - shown.rx_bytes,
            max(0.0, matched.tx_rate - shown.tx_rate),
            max(0.0, matched.rx_rate - shown.rx_rate),
        ),
        rows=tuple(_row(entry, query.group, window_rate) for entry in kept),
        hooks=snapshot.hooks,
        maps=snapshot.maps,
        losses=snapshot.losses,
        coverage=snapshot.coverage,
    )


def encode_answer(snapshot: Snapshot, query: Query) -> bytes:
    """`encode_view` of the answer, with fewer rows where it would exceed 32 MiB (`left_out` says so)."""
    while True:
        line = encode_view(select(snapshot, query))
        if len(line) < MAX_VIEW_BYTES or query.limit == 1:
            return line
        query = replace(query, limit=query.limit // 2)


def _matches(flow: FlowRow, words: list[str]) -> bool:
    text = (
        f"{flow.executable} {flow.pid} {flow.service} {flow.address}:{flow.port} {flow.peer} "
        f"{flow.peer_class.value} {_ROLES[flow.role]} {_TRANSPORTS[flow.transport]}"
    ).casefold()
    return all(word in text for word in words)


def _score(flow: FlowRow, scores: _Scores) -> float:
    if not scores or flow.role is not Role.CLIENT or flow.transport is not Transport.TCP:
        return _NO_SCORE
    return scores.get(Dependency(flow.service, flow.address, flow.port), _NO_SCORE)


def _entries(flows: Sequence[FlowRow], group: Group, scores: _Scores) -> list[_Entry]:
    if group is Group.FLOW:
        return [
            (
                f, f.tx_bytes, f.rx_bytes, f.tx_rate, f.rx_rate, 1, f.alive, f.tcp, f.tcp_window,
                _score(f, scores),
            )
            for f in flows
        ]  # fmt: skip
    key_of = _GROUP_KEYS[group]
    folded: dict[tuple[Any, ...], _Entry] = {}
    for flow in flows:
        key = key_of(flow)
        nothing: _Entry = (flow, 0, 0, 0.0, 0.0, 0, False, NO_FACTS, NO_FACTS, _NO_SCORE)
        first, tx, rx, tx_rate, rx_rate, count, alive, ever, window, score = folded.get(key, nothing)
        folded[key] = (
            first,
            tx + flow.tx_bytes,
            rx + flow.rx_bytes,
            tx_rate + flow.tx_rate,
            rx_rate + flow.rx_rate,
            count + 1,
            alive or flow.alive,
            _plus(ever, flow.tcp),
            _plus(window, flow.tcp_window),
            min(score, _score(flow, scores)),
        )
    return list(folded.values())


def _plus(one: TcpFacts, other: TcpFacts) -> TcpFacts:
    if other == NO_FACTS:
        return one
    return TcpFacts(
        one.connections + other.connections,
        one.failed + other.failed,
        one.retransmits + other.retransmits,
        one.resets + other.resets,
        one.drops + other.drops,
    )


def _ordered(entries: list[_Entry], query: Query) -> list[_Entry]:
    primary = _SORT_KEYS[query.sort]

    def key(entry: _Entry) -> tuple[Any, ...]:
        flow = entry[0]
        busiest_first = (-(entry[3] + entry[4]), -(entry[1] + entry[2]))
        who = (flow.executable, flow.pid)
        whom = (flow.address, flow.port, flow.peer, flow.role, flow.transport)
        return (primary(entry), *busiest_first, *who, *whom)

    if query.limit < len(entries) // 4:
        pick = heapq.nlargest if query.reverse else heapq.nsmallest
        return pick(query.limit, entries, key=key)
    return sorted(entries, key=key, reverse=query.reverse)[: query.limit]


def _row(entry: _Entry, group: Group, window_rate: float) -> Row:
    flow, tx_bytes, rx_bytes, tx_rate, rx_rate, count, alive, ever, window, score = entry
    by_flow = group is Group.FLOW
    has_destination = group in {Group.FLOW, Group.DESTINATION}
    has_process = group in {Group.FLOW, Group.PROCESS}
    client = flow.role is Role.CLIENT
    # A listening port's row sums many clients, so no single class of peer is true of it.
    peer_class = flow.peer_class if by_flow or (has_destination and client) else PeerClass.UNKNOWN
    return Row(
        pid=flow.pid if has_process else 0,
        executable=printable(flow.executable) if has_process else "",
        service="" if group is Group.DESTINATION else _service(flow, group),
        alive=alive,
        role=_ROLES[flow.role] if has_destination else "unknown",
        transport=_TRANSPORTS[flow.transport] if has_destination else "",
        address=printable(flow.address) if has_destination else "",
        port=flow.port if has_destination else 0,
        peer=printable(flow.peer) if by_flow or (has_destination and client) else "",
        peer_class=peer_class.value,
        flows=count,
        tx_bytes=tx_bytes,
        rx_bytes=rx_bytes,
        tx_rate=tx_rate,
        rx_rate=rx_rate,
        share=(tx_rate + rx_rate) / window_rate if window_rate > 0 else 0.0,
        tcp=ever,
        tcp_window=window,
        score=round(score, 4) if score <= 1 else None,
    )


def _service(flow: FlowRow, group: Group) -> str:
    name = flow.service or (flow.executable if group is Group.SERVICE else "")
    return printable(name)


def _leader(flows: Iterable[FlowRow], window_rate: float) -> Leader | None:
    if window_rate <= 0:
        return None
    rates: dict[str, float] = {}
    for flow in flows:
        name = flow.service or flow.executable
        rates[name] = rates.get(name, 0.0) + flow.tx_rate + flow.rx_rate
    name = min(rates, key=lambda candidate: (-rates[candidate], candidate))
    return Leader(printable(name), rates[name] / window_rate)


def _sum_flows(flows: Sequence[FlowRow]) -> Sums:
    return Sums(
        len(flows),
        sum(flow.tx_bytes for flow in flows),
        sum(flow.rx_bytes for flow in flows),
        sum(flow.tx_rate for flow in flows),
        sum(flow.rx_rate for flow in flows),
    )


def _sum_entries(entries: Sequence[_Entry]) -> Sums:
    return Sums(
        len(entries),
        sum(entry[1] for entry in entries),
        sum(entry[2] for entry in entries),
        sum(entry[3] for entry in entries),
        sum(entry[4] for entry in entries),
    )
