# SPDX-License-Identifier: Apache-2.0
"""TCP health: what becomes of connections, who drops whom and when, how long things take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat

from grafana import frame, look
from grafana.look import BAD, WARN, Column, Panel, Place, Text
from grafana.query import HOST, NOW, WINDOW, dashed, for_each, per_second, select, top, total

UID = "kernob-tcp"

SERVICE = 'kernob_service=~"$service"'
THERE = 'server_address=~"$destination"'
DESTINATION = ("host_name", "kernob_service", "server_address", "server_port")
PROCESS = ("host_name", "kernob_service", "process_executable_name", "process_pid")
NO_HOOK = "or no kernel hook for it could be attached (see Kernob itself, Hooks)"

EXACT = "time:YYYY-MM-DD HH:mm:ss.SSS"
"""Grafana's unit for milliseconds since 1970, in full."""

STAT, HALF, THIRD, WIDE = Place(4, 4), Place(12, 9), Place(8, 9), Place(24, 9)


def board() -> Dashboard:
    """The dashboard."""
    about = "Connections that fail, are reset, cut off or slow; per service, destination and process."
    new = frame.new(UID, "TCP health", about).with_variable(frame.host("kernob_probe_attached_ratio"))
    new.with_variable(frame.service()).with_variable(frame.destination())
    for mark in _marks():
        new.annotation(mark)
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (
        ("Fates", _fates()),
        ("Durations", _durations()),
        ("Who and whom", _tables()),
    ):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


def _tcp(name: str, *matchers: str) -> str:
    """A metric kernob.tcp.* of the chosen hosts, services and destinations."""
    return select(f"kernob_tcp_{name}", HOST, SERVICE, THERE, *matchers)


FAILED = _tcp("connections_total", 'error_type!=""')
OPENED = _tcp("connections_total")
RESETS = _tcp("resets_total")
DROPS = _tcp("drops_total")
RETRANSMITS = _tcp("retransmits_total")


# ---- events as marks -----------------------------------------------------------------------------


def _marks() -> Iterator[frame.Marks]:
    """Exact times of the latest events of a kind, as the kernel saw them."""
    for kind, name, colour in (
        ("kernob.tcp.reset", "Resets", "orange"),
        ("kernob.tcp.drop", "Drops", "red"),
    ):
        last = select("kernob_event_last_time_seconds", HOST, SERVICE, f'kernob_event_kind="{kind}"')
        exact = f"topk(20, max by (host_name,kernob_service,server_address) ({last})) * 1000"
        yield frame.Marks(
            name, colour, exact, f"{{{{kernob_service}}}}: {kind}", "{{server_address}} {{host_name}}"
        )


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    text = Text(
        "Open now",
        "Connections that are established, or closed by the peer only; both ends where both are on a host.",
        f"no process has a connection, {NO_HOOK}.",
        "none",
    )
    yield _number(text, f"sum(last_over_time({_tcp('connections_active')}[{NOW}]))")
    for title, says, counter, levels in (
        ("Connections", "Finished attempts and accepted connections in the range on the screen.", OPENED, {}),
        (
            "Failed attempts",
            "Attempts to connect that came to nothing, in the range on the screen.",
            FAILED,
            {1.0: WARN, 100.0: BAD},
        ),
        (
            "Dropped",
            "Requests that got no answer, or one that broke off, in the range on the screen.",
            DROPS,
            {1.0: WARN, 10.0: BAD},
        ),
        ("Reset", "RST segments sent and received, in the range on the screen.", RESETS, {1.0: WARN}),
        ("Resent", "Segments sent again, in the range on the screen.", RETRANSMITS, {100.0: WARN}),
    ):
        empty = f"there was none, {NO_HOOK}."
        yield _number(Text(title, says, empty, "none"), f"round({total(counter)})", levels)


def _number(text: Text, expression: str, levels: Mapping[float, str] | None = None) -> Stat:
    panel = look.stat(text, look.COUNT, STAT, look.at_end(expression, text.title))
    return panel.thresholds(look.thresholds(levels)).links(
        [frame.see("Who owns the network", "kernob-bandwidth")]
    )


# ---- fates ---------------------------------------------------------------------------------------


def _fates() -> Iterator[Panel]:
    """What becomes of connections and exchanges."""
    yield _outcomes()
    yield _failed()
    yield _dropped()
    yield _resets()
    yield _resent()
    yield _active()
    yield _stalled()


def _outcomes() -> Panel:
    text = Text(
        "Attempts by outcome",
        "Connections a second this host opened or accepted, by what became of them.",
        f"none was opened or accepted, {NO_HOOK}.",
        "none",
    )
    opened = f'label_replace({per_second(OPENED, ("error_type",))}, "error_type", "ok", "error_type", "")'
    return look.lines(text, "cps", HALF, look.over_time(opened, "{{error_type}}")).override_by_name(
        *look.color_of("ok", look.CALM)
    )


def _failed() -> Panel:
    text = Text(
        "Failed attempts by destination",
        "Attempts a second that failed, by service and destination; the rest of them as one.",
        "no attempt failed.",
        "none failed",
    )
    by = ("kernob_service", "server_address", "server_port", "error_type")
    failed = top(8, per_second(FAILED, by), "kernob_service=all others")
    legend = "{{kernob_service}} → {{server_address}}:{{server_port}} {{error_type}}"
    return look.stacked(text, "cps", HALF, look.over_time(failed, legend))


def _dropped() -> Panel:
    text = Text(
        "Dropped exchanges",
        "Exchanges a second without their answer, by kind and who closed. `unanswered`: no byte of an "
        "answer came; `reset_mid_response`: it began and a RST cut it off.",
        f"none was dropped, {NO_HOOK}.",
        "none dropped",
    )
    drops = per_second(DROPS, ("error_type", "kernob_closed_by"))
    return look.stacked(
        text, "cps", THIRD, look.over_time(drops, "{{error_type}}, closed by {{kernob_closed_by}}")
    )


def _resets() -> Panel:
    text = Text(
        "Resets",
        "RST segments a second by direction. `idle`: no exchange was open, as when a broker or a firewall "
        "clears connections that nobody uses.",
        f"there was none, {NO_HOOK}.",
        "no reset",
    )
    resets = per_second(RESETS, ("network_io_direction", "kernob_reset_idle"))
    legend = "{{network_io_direction}}, idle: {{kernob_reset_idle}}"
    return look.lines(text, "cps", THIRD, look.over_time(resets, legend))


def _resent() -> Panel:
    text = Text(
        "Segments resent",
        "Segments a second sent again, by service and destination. Packets lost on the way to this host "
        "show at the sender's.",
        f"none was resent, {NO_HOOK}.",
        "none resent",
    )
    resent = top(8, per_second(RETRANSMITS, ("kernob_service", "server_address", "server_port")),
                 "kernob_service=all others")  # fmt: skip
    legend = "{{kernob_service}} → {{server_address}}:{{server_port}}"
    return look.stacked(text, "pps", THIRD, look.over_time(resent, legend))


def _active() -> Panel:
    text = Text(
        "Active connections",
        "Connections that are open, by service and destination.",
        f"no process has a connection, {NO_HOOK}.",
        "none",
    )
    by = ("kernob_service", "server_address", "server_port")
    active = top(8, f"sum by ({','.join(by)}) ({_tcp('connections_active')})", "kernob_service=all others")
    legend = "{{kernob_service}} → {{server_address}}:{{server_port}}"
    return look.stacked(text, look.COUNT, HALF, look.over_time(active, legend))


def _stalled() -> Panel:
    text = Text(
        "Stalls and timeouts",
        "Times a second that a peer's full window kept a process from sending, and established connections "
        "that the kernel gave up because nothing was acknowledged.",
        f"there was none, {NO_HOOK}.",
        "none",
    )
    stalls = per_second(_tcp("stalls_total"), ("kernob_service",))
    timeouts = per_second(_tcp("timeouts_total"), ("kernob_service", "error_type"))
    return look.lines(
        text,
        "cps",
        HALF,
        look.over_time(f"topk(10, {stalls})", "stalled: {{kernob_service}}", "A"),
        look.over_time(f"topk(10, {timeouts})", "timed out: {{kernob_service}} {{error_type}}", "B"),
    )


# ---- durations -----------------------------------------------------------------------------------


def _durations() -> Iterator[Panel]:
    for name, title, says in (
        ("connect_duration", "Connecting", "From the SYN to the established connection"),
        (
            "response_duration",
            "Waiting for an answer",
            "From the last byte of a request to its answer's first",
        ),
        ("rtt", "Round trip", "The kernel's smoothed round trip time, sampled"),
    ):
        text = Text(
            title,
            f"{says}: the median, and what 95 and 99 of 100 stay below, over all chosen destinations. "
            "Buckets are a fifth of their value wide.",
            f"nothing was measured in this range, {NO_HOOK}.",
            "nothing measured",
        )
        counts = total(_tcp(f"{name}_seconds_bucket"), ("vmrange",), WINDOW)
        quantiles = [
            look.over_time(f"histogram_quantile({share}, {counts})", legend, ref)
            for share, legend, ref in (
                ("0.5", "median", "A"),
                ("0.95", "95th percentile", "B"),
                ("0.99", "99th percentile", "C"),
            )
        ]
        yield look.lines(text, look.SECONDS, THIRD, *quantiles)
    for name, title in (
        ("connect_duration", "Slowest to connect to"),
        ("response_duration", "Slowest to answer"),
    ):
        text = Text(
            title,
            "The 95th percentile of the destinations where it is highest on average.",
            f"nothing was measured in this range, {NO_HOOK}.",
            "nothing measured",
        )
        by = ("kernob_service", "server_address", "server_port", "vmrange")
        counts = total(_tcp(f"{name}_seconds_bucket"), by, WINDOW)
        slow = f"topk_avg(8, histogram_quantile(0.95, {counts}))"
        legend = "{{kernob_service}} → {{server_address}}:{{server_port}}"
        yield look.lines(text, look.SECONDS, HALF, look.over_time(slow, legend))


# ---- tables --------------------------------------------------------------------------------------

SERVICE_COLUMN = Column(
    "kernob_service",
    "Service",
    link=("Only this service", frame.filtered(UID, "service", "Service", "host", "destination")),
)
DESTINATION_COLUMN = Column(
    "server_address",
    "Destination",
    link=("How it serves", frame.filtered("kernob-dependency", "destination", "Destination", "host")),
)


def _tables() -> Iterator[Panel]:
    """Whom it hits, and when."""
    yield _worst_destinations()
    yield _worst_processes()
    yield _latest_events()


def _worst_destinations() -> Panel:
    text = Text(
        "Destinations",
        "Destinations with most failures in the range on the screen: attempts that failed, exchanges "
        "dropped, RSTs, segments resent.",
        "nothing failed.",
        "nothing failed",
    )
    everything = " or ".join(
        f"label_set({total(counter, DESTINATION)}, 'what', '{name}')"
        for name, counter in (("f", FAILED), ("d", DROPS), ("r", RESETS), ("s", RETRANSMITS))
    )
    by = ",".join(DESTINATION)
    worst = f"topk(30, round(sum by ({by}) ({everything})) > 0)"
    columns: tuple[Column, ...] = (
        SERVICE_COLUMN,
        DESTINATION_COLUMN,
        Column("server_port", "Port", width=60),
        Column("Value #B", "Failed", look.COUNT, 75, levels={1.0: BAD}),
        Column("Value #C", "Dropped", look.COUNT, 80, levels={1.0: BAD}),
        Column("Value #D", "Resets", look.COUNT, 75, levels={1.0: WARN}),
        Column("Value #E", "Resent", look.COUNT, 75, levels={100.0: WARN}),
        Column("Value #A", "All", look.COUNT, 75, sorted=True),
        Column("host_name", "Host", width=90),
    )
    queries = [look.rows(dashed(worst, "server_address", "server_port", "kernob_service"), "A")]
    for ref, counter in (("B", FAILED), ("C", DROPS), ("D", RESETS), ("E", RETRANSMITS)):
        each = for_each(worst, f"round({total(counter, DESTINATION)})")
        queries.append(look.rows(dashed(each, "server_address", "server_port", "kernob_service"), ref))
    return look.table(text, WIDE, columns, *queries)


def _worst_processes() -> Panel:
    text = Text(
        "Processes",
        "Processes of the range on the screen with most failures, whatever the destination.",
        "nothing failed.",
        "nothing failed",
    )
    counters = {
        "B": select("kernob_process_tcp_connections_total", HOST, SERVICE, 'error_type!=""'),
        "C": select("kernob_process_tcp_drops_total", HOST, SERVICE),
        "D": select("kernob_process_tcp_resets_total", HOST, SERVICE),
        "E": select("kernob_process_tcp_retransmits_total", HOST, SERVICE),
    }
    everything = " or ".join(
        f"label_set({total(counter, PROCESS)}, 'what', '{ref}')" for ref, counter in counters.items()
    )
    worst = f"topk(30, round(sum by ({','.join(PROCESS)}) ({everything})) > 0)"
    columns = (
        Column("process_executable_name", "Process"),
        Column("process_pid", "PID", width=80),
        SERVICE_COLUMN,
        Column("Value #B", "Failed", look.COUNT, 75, levels={1.0: BAD}),
        Column("Value #C", "Dropped", look.COUNT, 80, levels={1.0: BAD}),
        Column("Value #D", "Resets", look.COUNT, 75, levels={1.0: WARN}),
        Column("Value #E", "Resent", look.COUNT, 75, levels={100.0: WARN}),
        Column("Value #A", "All", look.COUNT, 75, sorted=True),
        Column("host_name", "Host", width=90),
    )
    queries = [look.rows(dashed(worst, "process_pid"), "A")]
    for ref, counter in counters.items():
        each = for_each(worst, f"round({total(counter, PROCESS)})")
        queries.append(look.rows(dashed(each, "process_pid"), ref))
    return look.table(text, WIDE, columns, *queries)


def _latest_events() -> Panel:
    text = Text(
        "Latest events",
        "When what last happened to whom, by the kernel's clock, to the millisecond. Every single one stands "
        "in the logs and in `kernob events`.",
        "no event in the last day.",
        "no event",
    )
    last = select("kernob_event_last_time_seconds", HOST, SERVICE)
    by = "max by (host_name,kernob_service,server_address,kernob_event_kind)"
    latest = f"topk(50, {by} ({last})) * 1000"
    columns = (
        Column("Value", "When", EXACT, 190, sorted=True),
        Column("kernob_event_kind", "What", width=190),
        SERVICE_COLUMN,
        DESTINATION_COLUMN,
        Column("host_name", "Host", width=90),
    )
    return look.table(text, WIDE, columns, look.rows(dashed(latest, "server_address")))
