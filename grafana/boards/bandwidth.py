# SPDX-License-Identifier: Apache-2.0
"""Bandwidth: who owns the network now, and since when.

Everything but the last row leaves loopback out: it crosses no interface. Rates and shares are of what the
processes read and wrote, without headers.
"""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from grafana import alerts, frame, look, query
from grafana.look import BAD, CALM, PLAIN, WARN, Column, Panel, Place, Text
from grafana.query import (
    HOST,
    NOW,
    PROCESS,
    PROCESS_FLOW,
    REMOTE_FLOW,
    for_each,
    per_second,
    select,
    top,
    total,
)

UID = "kernob-bandwidth"

OWNER_SHARE = "kernob:owner:share"
OWNER_SINCE = "kernob:owner:since_seconds"
"""Recorded by vmalert (victoriametrics/rules): the first process of each host and direction."""

WORD = {"transmit": "sent", "receive": "received"}
NO_TRAFFIC = "nobody moved a byte that these variables and this range select, or the agent was not running."
NO_HOSTMETRICS = "the Collector's hostmetrics do not arrive, so that nothing is known of the interfaces."


def board() -> Dashboard:
    """The dashboard."""
    about = "Who owns the network now, and since when: exact bytes by service, process and destination."
    new = frame.new(UID, "Bandwidth", about)
    for variable in (
        frame.host("kernob_probe_attached_ratio"),
        frame.interface(),
        frame.service(),
        frame.destination(),
    ):
        new.with_variable(variable)
    new.annotation(_owner_changes("transmit")).annotation(_owner_changes("receive"))
    for panel in _glance():
        new.with_panel(panel)
    new.with_row(Row("Rates")).with_panel(_by_service("transmit")).with_panel(_by_service("receive"))
    new.with_panel(_by_process("transmit")).with_panel(_by_process("receive"))
    new.with_panel(_by_destination("transmit")).with_panel(_by_destination("receive"))
    new.with_row(Row("Share of the interface"))
    new.with_panel(_share("transmit")).with_panel(_share("receive"))
    new.with_panel(_explained("transmit")).with_panel(_explained("receive"))
    new.with_row(Row("Who moved how much")).with_panel(_who_moved_how_much())
    new.with_row(Row("Inside this host")).with_panel(_loopback())
    return new


def _owner_changes(direction: str) -> frame.Marks:
    since = select(OWNER_SINCE, HOST, f'network_io_direction="{direction}"')
    return frame.Marks(
        f"Owner of {direction}",
        look.DIRECTION[direction],
        # each owner of an interval, however long the range on the screen makes it
        f"last_over_time({since}[$__interval]) * 1000",
        f"{direction}: {{{{process_executable_name}}}} {{{{process_pid}}}}",
        "{{kernob_service}} on {{host_name}} became the first of those that " + direction,
    )


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    yield _interface_now("transmit", "Sending now")
    yield _interface_now("receive", "Receiving now")
    yield _owner()
    yield _coverage()
    yield _alerts()
    yield alerts.table(Place(24, 6))


def _interface_now(direction: str, title: str) -> Stat:
    text = Text(
        title,
        f"Bytes a second the chosen interfaces {WORD[direction]}, headers included, over the last two "
        "minutes.",
        NO_HOSTMETRICS,
        "no hostmetrics",
    )
    now = look.at_end(per_second(query.interface(direction), window=NOW), direction)
    panel = look.stat(text, look.BYTES_PER_S, Place(3, 6), now)
    return panel.links([frame.see("Interfaces of this host", "kernob-host")])


def _owner() -> Table:
    text = Text(
        "Owner now",
        "For each direction the process with most bytes, its share of what the host's interfaces carried "
        "in the last two minutes, and since when it has been first without a break. Set the range to end "
        "at another time and it says who it was then.",
        "nobody stands out (too little traffic), or vmalert does not run: its rules record this.",
        "nobody stands out",
    )
    columns = (
        Column("network_io_direction", "Direction", width=80),
        Column("process_executable_name", "Process", width=110),
        Column("process_pid", "PID", width=70),
        Column("kernob_service", "Service", link=("Only this service", _only("service", "Service"))),
        Column("Value #A", "Share", look.SHARE, 90, gauge=True, levels={0.5: WARN, 0.8: BAD}),
        Column("Value #B", "Since", look.TIME, 145),
        Column("host_name", "Host", width=70),
    )
    share = look.rows(select(OWNER_SHARE, HOST), "A")
    # who took over a moment ago has no time recorded yet: then it is now
    began = f"{select(OWNER_SINCE, HOST)} * 1000 or 0 * {select(OWNER_SHARE, HOST)} + time() * 1000"
    since = look.rows(began, "B")
    return look.table(text, Place(14, 6), columns, share, since)


def _coverage() -> Stat:
    text = Text(
        "Explained",
        "Kernob's coverage: the part of the interfaces' bytes that it can name a process for, the lower of "
        "both directions. Much below 100 %: forwarded or kernel traffic (NFS, containers' bridges), or a "
        "hook that is not attached.",
        "less than 1 MB a window crossed the interfaces, too little for a ratio.",
        "too little traffic",
    )
    worst = f"min(last_over_time({select('kernob_coverage_ratio', HOST)}[{NOW}]))"
    panel = look.stat(text, look.SHARE, Place(2, 6), look.at_end(worst, "coverage"))
    levels = look.thresholds({0.7: WARN, 0.9: CALM}, base=BAD)
    return panel.decimals(0).thresholds(levels).links([frame.see("Hooks and losses", "kernob-self")])


def _alerts() -> Stat:
    text = Text(
        "Alerts",
        "Alert rules that fire, on all hosts; the table below names them.",
        "vmalert has not evaluated a rule for two minutes: nobody watches.",
        "nobody watches",
    )
    firing = query.ALERTS_FIRING
    panel = look.stat(text, look.COUNT, Place(2, 6), look.at_end(firing, "firing"))
    return panel.thresholds(look.thresholds({1.0: BAD})).links(
        [frame.see("Whether alerts can be relied on", "kernob-self")]
    )


# ---- rates ---------------------------------------------------------------------------------------

HALF = Place(12, 10)
PROCESS_LEGEND = "{{kernob_service}} {{process_executable_name}} {{process_pid}}"


def _by_service(direction: str) -> Timeseries:
    text = Text(
        f"By service: {WORD[direction]}",
        f"Bytes a second each service {WORD[direction]}. A connection between two services of one host "
        "counts at both ends. A click on a name shows it alone.",
        NO_TRAFFIC,
    )
    rate = per_second(query.flow(direction, REMOTE_FLOW), ("kernob_service",))
    ranked = top(8, rate, "kernob_service=all others")
    return look.stacked(text, look.BYTES_PER_S, HALF, look.over_time(ranked, "{{kernob_service}}"))


def _by_process(direction: str) -> Timeseries:
    text = Text(
        f"By process: {WORD[direction]}",
        f"Bytes a second each process {WORD[direction]}, by service, executable and PID. `~other` stands "
        "for processes beyond the agent's series cap.",
        NO_TRAFFIC,
    )
    rate = per_second(query.process_flow(direction), PROCESS)
    ranked = top(8, rate, "kernob_service=all others")
    return look.stacked(text, look.BYTES_PER_S, HALF, look.over_time(ranked, PROCESS_LEGEND))


def _by_destination(direction: str) -> Timeseries:
    text = Text(
        f"By destination: {WORD[direction]}",
        f"Bytes a second {WORD[direction]}, by destination and port. `client`: this host connected to it; "
        "`server`: it is this host's own address and port, and others connected to it. "
        "`unknown`: the socket had no peer at that moment.",
        NO_TRAFFIC,
    )
    keys = ("server_address", "server_port", "network_tcp_handshake_role")
    rate = per_second(query.flow(direction, REMOTE_FLOW), keys)
    # what is sent to nobody in particular has no address; a curve without a name would be a riddle
    named = f'label_replace({rate}, "server_address", "unknown", "server_address", "")'
    ranked = top(8, named, "server_address=all others")
    legend = "{{server_address}} {{server_port}} {{network_tcp_handshake_role}}"
    return look.stacked(text, look.BYTES_PER_S, HALF, look.over_time(ranked, legend))


# ---- shares --------------------------------------------------------------------------------------


def _share(direction: str) -> Timeseries:
    text = Text(
        f"Share of the interface, {WORD[direction]}",
        f"What each process {WORD[direction]}, over what the chosen interfaces of its host carried. More "
        "than 100 %: traffic that crossed a bridge to a container and not these interfaces.",
        f"{NO_TRAFFIC} Or {NO_HOSTMETRICS}",
    )
    rate = per_second(query.process_flow(direction), PROCESS)
    whole = per_second(query.interface(direction), ("host_name",))
    share = f"({rate}) / on (host_name) group_left () ({whole} > 0)"
    ranked = top(6, share)
    panel = look.lines(text, look.SHARE, HALF, look.over_time(ranked, PROCESS_LEGEND))
    return look.limited(panel.axis_soft_max(1), {0.8: BAD})


def _explained(direction: str) -> Timeseries:
    text = Text(
        f"Interface and processes, {WORD[direction]}",
        "The interfaces' bytes a second, headers included, and what the processes of all services account "
        "for, without headers. The gap is headers and what no process owns.",
        f"{NO_TRAFFIC} Or {NO_HOSTMETRICS}",
    )
    processes = select("kernob_flow_io_bytes_total", f'network_io_direction="{direction}"', HOST, REMOTE_FLOW)
    panel = look.lines(
        text,
        look.BYTES_PER_S,
        Place(12, 8),
        look.over_time(per_second(query.interface(direction), ("device",)), "{{device}}", "A"),
        look.over_time(per_second(processes), "processes", "B"),
    )
    return panel.override_by_name(*look.color_of("processes", PLAIN))


# ---- tables --------------------------------------------------------------------------------------


def _who_moved_how_much() -> Table:
    text = Text(
        "Processes and destinations",
        "The 50 pairs of process and destination that moved most bytes in the range on the screen; rates "
        "are of its last two minutes. Totals are exact, ended processes included.",
        NO_TRAFFIC,
        "no traffic",
    )
    ranking = f"topk(50, {total(query.process_flow(), PROCESS_FLOW)} > 0)"
    expressions = (
        per_second(query.process_flow("transmit"), PROCESS_FLOW, NOW),
        per_second(query.process_flow("receive"), PROCESS_FLOW, NOW),
        total(query.process_flow("transmit"), PROCESS_FLOW),
        total(query.process_flow("receive"), PROCESS_FLOW),
    )
    ranked = [for_each(ranking, expression) for expression in expressions]
    columns = (
        Column("kernob_service", "Service", link=("Only this service", _only("service", "Service"))),
        Column("process_executable_name", "Process", width=140),
        Column("process_pid", "PID", width=85),
        Column(
            "server_address",
            "Destination",
            link=("Only this destination", _only("destination", "Destination")),
        ),
        Column("server_port", "Port", width=70),
        Column("Value #A", "TX/s", look.BYTES_PER_S, 100),
        Column("Value #B", "RX/s", look.BYTES_PER_S, 100),
        Column("Value #C", "Sent", look.BYTES, 100, sorted=True),
        Column("Value #D", "Received", look.BYTES, 100),
        Column("host_name", "Host", width=110),
    )
    queries = [look.rows(expression, ref) for expression, ref in zip(ranked, "ABCD", strict=True)]
    return look.table(text, Place(24, 12), columns, *queries)


def _loopback() -> Timeseries:
    text = Text(
        "Over loopback, by service",
        "Bytes a second that services sent to other processes of the same host over loopback. They load no "
        "interface, and are in no panel above.",
        "no process talked to another over loopback.",
        "none",
    )
    local = query.flow("transmit", 'kernob_peer_class="localhost"')
    ranked = top(8, per_second(local, ("kernob_service",)), "kernob_service=all others")
    return look.stacked(text, look.BYTES_PER_S, Place(24, 8), look.over_time(ranked, "{{kernob_service}}"))


def _only(variable: str, column: str) -> str:
    kept = [name for name in ("host", "interface", "service", "destination") if name != variable]
    return frame.filtered(UID, variable, column, *kept)
