# SPDX-License-Identifier: Apache-2.0
"""state.flows: totals out of closed bytes and live sockets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernob.state.flows import FlowTable
from tests.unit.records import closed, flow_key, live

A, B = flow_key(pid=1), flow_key(pid=2)


def total(table: FlowTable, key: bytes) -> tuple[int, int]:
    """Totals of one flow."""
    flow = next(i for i in table.indices().tolist() if table.key(i) == key)
    return int(table.totals[flow, 0]), int(table.totals[flow, 1])


def test_closed_and_live_bytes_add_up() -> None:
    """A flow's total is what its closed sockets left plus what its live sockets hold."""
    table = FlowTable()
    table.update(*closed((A, 10, 1)), live((A, 5, 0), (A, 2, 0), (B, 7, 7)))
    assert total(table, A) == (17, 1)
    assert total(table, B) == (7, 7)
    assert table.sockets.sum() == 3


def test_a_socket_that_closes_between_the_reads_neither_lowers_nor_doubles() -> None:
    """A socket in neither view for one tick leaves the total where it was; its bytes count once."""
    table = FlowTable()
    table.update(*closed(), live((A, 100, 50)))
    growth = table.update(*closed(), live())
    assert len(growth.flows) == 0
    assert total(table, A) == (100, 50)
    growth = table.update(*closed((A, 110, 50)), live())
    assert growth.tx_bytes.tolist() == [10]
    assert total(table, A) == (110, 50)


def test_growth_lists_only_what_grew() -> None:
    """An idle flow is not in a tick's growth."""
    table = FlowTable()
    table.update(*closed(), live((A, 1, 1), (B, 1, 1)))
    growth = table.update(*closed(), live((A, 1, 1), (B, 1, 4)))
    assert [table.key(i) for i in growth.flows.tolist()] == [B]
    assert (growth.tx_bytes.tolist(), growth.rx_bytes.tolist()) == ([0], [3])


def test_sockets_without_bytes_are_known_but_do_not_grow() -> None:
    """A connection over which nothing was sent is a flow with a live socket, and no growth."""
    table = FlowTable()
    growth = table.update(*closed(), live((A, 0, 0)))
    assert (len(table), len(growth.flows)) == (1, 0)
    assert (table.live.tolist(), table.sockets[table.live].tolist()) == ([0], [1])


def test_a_forgotten_flow_starts_again_from_zero() -> None:
    """Forgetting frees the index; the same key later counts anew."""
    table = FlowTable()
    table.update(*closed((A, 10, 10)), live())
    table.forget(table.indices())
    assert len(table) == 0
    table.new = []
    growth = table.update(*closed((A, 3, 0)), live())
    assert table.new == growth.flows.tolist()
    assert total(table, A) == (3, 0)


def test_tables_grow_beyond_their_first_room() -> None:
    """3,000 flows in one tick are all there."""
    keys = [flow_key(pid=i) for i in range(1, 3001)]
    table = FlowTable()
    growth = table.update(
        *closed(*((key, 2, 1) for key in keys)), live(*((key, 1, 1) for key in keys[:1500]))
    )
    assert len(table) == 3000
    assert growth.tx_bytes.sum() == 3000 * 2 + 1500


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1000), st.booleans(), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_totals_never_fall_nor_exceed_the_truth(steps: list[tuple[int, int, bool, bool]]) -> None:
    """Whatever closes at whatever moment, totals are monotonic, at most the truth, and exact at the end.

    A step sends bytes on one of four sockets; it may then close it (and open another in its place),
    before the drain or between drain and socket reading.
    """
    table = FlowTable()
    open_bytes = [0, 0, 0, 0]
    pending, late, truth, last = 0, 0, 0, 0
    for which, sent, close_early, close_late in steps:
        truth += sent
        open_bytes[which] += sent
        pending, late = pending + late, 0
        if close_early:
            pending, open_bytes[which] = pending + open_bytes[which], 0
        drained, pending = pending, 0
        if close_late:
            late, open_bytes[which] = open_bytes[which], 0
        table.update(*closed((A, drained, 0)), live(*((A, count, 0) for count in open_bytes)))
        seen = int(table.totals[:, 0].sum())
        assert last <= seen <= truth
        last = seen
    table.update(*closed((A, pending + late, 0)), live(*((A, count, 0) for count in open_bytes)))
    assert int(table.totals[:, 0].sum()) == truth


def test_dtype_matches_the_flow_table_assumption() -> None:
    """The process' identity is the first 10 bytes of a key."""
    key = np.frombuffer(flow_key(pid=0x01020304, start=5, exec_id=6), np.uint8)
    assert key[:10].tolist() == [4, 3, 2, 1, 5, 0, 0, 0, 6, 0]
