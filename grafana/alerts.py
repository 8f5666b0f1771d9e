# SPDX-License-Identifier: Apache-2.0
"""The table of alerts that fire or are about to: where an operator begins. Called by `boards`.

In: nothing but what vmalert writes back (ALERTS, ALERTS_FOR_STATE). Out: a panel, of all hosts, newest first.
"""

from __future__ import annotations

from typing import Final

from grafana import look
from grafana.look import BAD, WARN, Column, Panel, Place, Text
from grafana.query import dashed

_WHOM: Final = ("severity", "kernob_service", "server_address", "process_executable_name", "host_name")
_BY: Final = f"max by ({','.join(('alertname', *_WHOM))})"
# topk: the limit of every query by process; 100 alerts at once are no table any more
_SINCE: Final = f"topk(100, {_BY} (ALERTS_FOR_STATE)) * 1000"
_STATE: Final = f'topk(100, {_BY} (2 * ALERTS{{alertstate="firing"}} or ALERTS{{alertstate="pending"}}))'


def table(place: Place) -> Panel:
    """Which alert, of what, since when."""
    text = Text(
        "Alerts now",
        "Alerts that fire or are about to, of all hosts, the newest first, and whom they are about. What "
        "each means and what to do stands in victoriametrics/README.md under its name.",
        "no alert is pending or firing, or vmalert does not run: see Rule evaluations in Kernob itself.",
        "no alert",
    )
    columns = (
        Column("alertname", "Alert", width=210),
        Column("Value #B", "State", look.COUNT, 80, words={"1": ("pending", WARN), "2": ("firing", BAD)}),
        Column("severity", "Severity", width=80),
        Column("kernob_service", "Service"),
        Column("server_address", "Destination"),
        Column("process_executable_name", "Process", width=110),
        Column("Value #A", "Since", look.TIME, 145, sorted=True),
        Column("host_name", "Host", width=90),
    )
    queries = (look.rows(dashed(_SINCE, *_WHOM), "A"), look.rows(dashed(_STATE, *_WHOM), "B"))
    return look.table(text, place, columns, *queries)
