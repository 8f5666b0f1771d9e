# SPDX-License-Identifier: Apache-2.0
"""Kernob itself: what is attached, what was lost, what it costs, and how the stack behind it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat

from grafana import alerts, frame, look
from grafana.look import BAD, CALM, WARN, Column, Panel, Place, Text
from grafana.query import ALERTS_FIRING, HOST, NOW, WINDOW, dashed, per_second, select, total

UID = "kernob-self"

NO_AGENT = "no agent sent anything in this range: it does not run, or does not reach the Collector."
NO_STACK = "this part of the stack does not send its own metrics to VictoriaMetrics."
AGENT = 'service_name="kernob"'
SERIES = "process_network_io_bytes_total|kernob_flow_io_bytes_total|kernob_process_flow_io_bytes_total"

STAT, HALF, THIRD, QUARTER, WIDE = Place(4, 4), Place(12, 8), Place(8, 8), Place(6, 8), Place(24, 9)


def board() -> Dashboard:
    """The dashboard."""
    about = "What Kernob sees, what it misses, and what it costs; and the health of the stack behind it."
    new = frame.new(UID, "Kernob itself", about).with_variable(frame.host("kernob_probe_attached_ratio"))
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (
        ("Alerts and hooks", _hooks()),
        ("Losses and coverage", _losses()),
        ("Cost", _cost()),
        ("Export", _export()),
        ("Collector and VictoriaMetrics", _stack()),
    ):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


def _now(metric: str, *matchers: str) -> str:
    return f"last_over_time({select(metric, HOST, *matchers)}[{NOW}])"


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    attached = _now("kernob_probe_attached_ratio")
    says = "Hosts whose agent sent data in the last two minutes."
    yield _number(Text("Agents", says, NO_AGENT, "none"), f"count(count by (host_name) ({attached}))")
    text = Text(
        "Oldest data",
        "Age of the last data of the agent that has been silent longest, of those that sent any in the last "
        "hour.",
        NO_AGENT,
    )
    age = f"time() - min(tlast_over_time({select('kernob_probe_attached_ratio', HOST)}[1h]))"
    yield _number(text, age, {90.0: WARN, 300.0: BAD}).unit(look.SECONDS)
    text = Text(
        "Hooks not attached",
        "Hooks for which no way of attaching was accepted. What they would have counted is missing; the "
        "reasons stand below and in `kernob doctor`.",
        NO_AGENT,
    )
    yield _number(text, f"sum(1 - {attached})", {1.0: BAD})
    text = Text(
        "Lost in this range",
        "What Kernob itself could not count or keep apart in the range on the screen, all causes.",
        NO_AGENT,
    )
    lost = f"round({total(select('kernob_lost_total', HOST))})"
    yield _number(text, lost, {1.0: WARN, 1000.0: BAD})
    text = Text(
        "Failed exports",
        "OTLP requests that failed in the range on the screen. Counters are cumulative, so that nothing is "
        "lost once one gets through.",
        NO_AGENT,
    )
    failed = f"round({total(select('kernob_export_failures_total', HOST))}) or 0 * count({attached})"
    yield _number(text, failed, {1.0: WARN, 100.0: BAD})
    text = Text(
        "Alerts firing",
        "Alert rules that fire, on all hosts; the table below names them.",
        "vmalert has not evaluated a rule for two minutes: nobody watches.",
        "nobody watches",
    )
    yield _number(text, ALERTS_FIRING, {1.0: BAD})


def _number(text: Text, expression: str, levels: Mapping[float, str] | None = None) -> Stat:
    panel = look.stat(text, look.COUNT, STAT, look.at_end(expression, text.title))
    return panel.thresholds(look.thresholds(levels)).links([_to_bandwidth()])


def _to_bandwidth() -> frame.Link:
    return frame.see("Who owns the network", "kernob-bandwidth")


# ---- hooks, alerts -------------------------------------------------------------------------------


def _hooks() -> Iterator[Panel]:
    yield alerts.table(Place(24, 7))
    text = Text(
        "Hooks",
        "Every hook of every probe, the strategy that holds it, or the reason why none does.",
        NO_AGENT,
    )
    by = "min by (host_name,kernob_probe,kernob_hook,kernob_strategy,error_type)"
    attached = f"{by} ({_now('kernob_probe_attached_ratio')})"
    hooks = look.rows(dashed(attached, "kernob_strategy", "error_type"))
    words = {"1": ("attached", CALM), "0": ("not attached", BAD)}
    columns = (
        Column("kernob_probe", "Probe", width=70),
        Column("kernob_hook", "Hook", width=70),
        Column("Value", "State", look.COUNT, 100, words=words),
        Column("kernob_strategy", "Strategy"),
        Column("error_type", "Reason", width=110),
        Column("host_name", "Host", width=70),
    )
    yield look.table(text, WIDE, columns, hooks)


# ---- losses, coverage ----------------------------------------------------------------------------


def _losses() -> Iterator[Panel]:
    text = Text(
        "Losses by cause",
        "Events a second Kernob could not count or keep apart. `map_full`: a BPF map was full (see Map "
        "fill); `series_cap`: a series folded into its service's `~other`, bytes kept.",
        f"{NO_AGENT} Curves at 0 are as it should be.",
    )
    lost = per_second(select("kernob_lost_total", HOST), ("kernob_cause",))
    yield look.lines(text, "cps", THIRD, look.over_time(lost, "{{kernob_cause}}"))
    text = Text(
        "Map fill",
        "Entries of each BPF map over its room. At 100 % new sockets or flows are counted under losses.",
        NO_AGENT,
    )
    fill = "max by (host_name,kernob_map) ({} / {})".format(
        select("kernob_bpf_map_entries", HOST), select("kernob_bpf_map_capacity", HOST)
    )
    panel = look.lines(text, look.SHARE, THIRD, look.over_time(fill, "{{kernob_map}} {{host_name}}"))
    yield look.limited(panel.axis_soft_max(1), {0.8: WARN, 0.95: BAD})
    text = Text(
        "Coverage",
        "Part of the interfaces' bytes that processes account for, by direction. Slightly above 100 % is "
        "the estimate of headers; far above, something is counted twice.",
        "less than 1 MB a window crossed the interfaces, too little for a ratio; or no agent sent anything.",
        "too little traffic",
    )
    coverage = f"max by (host_name,interface,network_io_direction) ({select('kernob_coverage_ratio', HOST)})"
    legend = "{{interface}} {{network_io_direction}} {{host_name}}"
    panel = look.lines(text, look.SHARE, THIRD, look.over_time(coverage, legend))
    yield look.limited(panel.axis_soft_max(1), {0.7: WARN, 0.9: CALM}, base=BAD)


# ---- cost ----------------------------------------------------------------------------------------


def _cost() -> Iterator[Panel]:
    text = Text("Agent: processor", "Processors the agent itself uses, in user and in kernel mode.", NO_AGENT)
    cpu = per_second(select("process_cpu_time_seconds_total", AGENT, HOST), ("host_name", "cpu_mode"))
    legend = "{{cpu_mode}} {{host_name}}"
    panel = look.stacked(text, look.SHARE, QUARTER, look.over_time(cpu, legend))
    yield panel.thresholds(look.thresholds({0.05: WARN}))
    text = Text("Agent: memory", "Resident memory of the agent.", NO_AGENT)
    memory = f"max by (host_name) ({select('process_memory_usage_bytes', AGENT, HOST)})"
    yield look.lines(text, look.BYTES, QUARTER, look.over_time(memory, "{{host_name}}"))
    text = Text(
        "Time of one run",
        "Mean time a probe's programs take in the kernel each time they run.",
        "the agent runs without KERNOB_BPF_STATS=true, so that the kernel does not measure it.",
        "KERNOB_BPF_STATS is off",
    )
    by = ("kernob_probe",)
    spent = total(select("kernob_probe_run_time_seconds_total", HOST), by, WINDOW)
    runs = total(select("kernob_probe_runs_total", HOST), by, WINDOW)
    yield look.lines(
        text, look.SECONDS, QUARTER, look.over_time(f"{spent} / ({runs} > 0)", "{{kernob_probe}}")
    )
    text = Text(
        "Series",
        "Series of each byte metric that are alive; each has its cap in the agent's settings.",
        NO_AGENT,
    )
    alive = f'count by (__name__) ({{__name__=~"{SERIES}",{HOST}}})'
    yield look.lines(text, look.COUNT, QUARTER, look.over_time(alive, "{{__name__}}"))


# ---- export --------------------------------------------------------------------------------------


def _export() -> Iterator[Panel]:
    text = Text(
        "Failed and repeated",
        "OTLP requests a second that failed, by reason, and batches that a newer one replaced before they "
        "were sent.",
        NO_AGENT,
        "none failed",
    )
    failed = per_second(select("kernob_export_failures_total", HOST), ("error_type",))
    replaced = per_second(select("kernob_export_replaced_total", HOST))
    rejected = per_second(select("kernob_export_rejected_total", HOST))
    yield look.lines(
        text,
        "cps",
        HALF,
        look.over_time(failed, "failed: {{error_type}}", "A"),
        look.over_time(replaced, "replaced by a newer batch", "B"),
        look.over_time(rejected, "points refused for good", "C"),
    )
    text = Text(
        "Duration of a request",
        "From sending an OTLP request to its answer or failure: half of them, and 95 of 100, took no longer.",
        NO_AGENT,
    )
    buckets = total(select("kernob_export_duration_seconds_bucket", HOST), ("le",), WINDOW)
    quantiles = [
        look.over_time(f"histogram_quantile({share}, {buckets})", name, ref)
        for share, name, ref in (("0.5", "median", "A"), ("0.95", "95th percentile", "B"))
    ]
    yield look.lines(text, look.SECONDS, HALF, *quantiles)


# ---- the stack -----------------------------------------------------------------------------------


def _stack() -> Iterator[Panel]:
    """What is behind the agent."""
    yield _collector_points()
    yield _collector_queue()
    yield _memory()
    yield _rows()
    yield _series_and_disk()
    yield _evaluations()


def _collector_points() -> Panel:
    text = Text(
        "Collector: points",
        "Metric points a second the Collector sent on, and those it failed to send (they are tried again "
        "from its queue).",
        NO_STACK,
        "no Collector metrics",
    )
    by = ("exporter",)
    sent = per_second("otelcol_exporter_sent_metric_points_total", by)
    failed = per_second("otelcol_exporter_send_failed_metric_points_total", by)
    return look.lines(
        text,
        "cps",
        THIRD,
        look.over_time(sent, "sent: {{exporter}}", "A"),
        look.over_time(failed, "failed: {{exporter}}", "B"),
    )


def _collector_queue() -> Panel:
    text = Text(
        "Collector: queue",
        "How full the Collector's sending queues are. At 100 % what arrives is refused, and the agent "
        "keeps it.",
        NO_STACK,
        "no Collector metrics",
    )
    fill = "max by (exporter,data_type) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)"
    panel = look.lines(text, look.SHARE, THIRD, look.over_time(fill, "{{exporter}} {{data_type}}"))
    return look.limited(panel.axis_soft_max(1), {0.5: WARN, 0.9: BAD})


def _memory() -> Panel:
    text = Text("Memory of the stack", "Resident memory of Collector, VictoriaMetrics and vmalert.", NO_STACK)
    return look.lines(
        text,
        look.BYTES,
        THIRD,
        look.over_time(
            "max by (host_name) (otelcol_process_memory_rss_bytes)", "Collector {{host_name}}", "A"
        ),
        look.over_time("max by (job) (process_resident_memory_bytes)", "{{job}}", "B"),
    )


def _rows() -> Panel:
    text = Text(
        "VictoriaMetrics: rows",
        "Rows a second it takes in, by protocol, and rows it dropped.",
        NO_STACK,
        "no VictoriaMetrics metrics",
    )
    return look.lines(
        text,
        "cps",
        THIRD,
        look.over_time(per_second("vm_rows_inserted_total", ("type",)) + " > 0", "in: {{type}}", "A"),
        look.over_time(per_second("vm_rows_ignored_total", ("reason",)) + " > 0", "ignored: {{reason}}", "B"),
    )


def _series_and_disk() -> Panel:
    text = Text(
        "VictoriaMetrics: series and disk",
        "Series that are alive, and bytes on disk.",
        NO_STACK,
        "no VictoriaMetrics metrics",
    )
    active = 'max(vm_cache_entries{type="storage/hour_metric_ids"})'
    disk = "sum(vm_data_size_bytes)"
    panel = look.lines(
        text,
        look.COUNT,
        THIRD,
        look.over_time(active, "series", "A"),
        look.over_time(disk, "bytes on disk", "B"),
    )
    return panel.override_by_name("bytes on disk", look.axis(look.BYTES))


def _evaluations() -> Panel:
    text = Text(
        "Rule evaluations",
        "Evaluations a second of vmalert's groups of rules, and failures. Without this curve nobody "
        "watches: the count of firing alerts says 0 then too.",
        NO_STACK,
        "no vmalert metrics",
    )
    return look.lines(
        text,
        "cps",
        THIRD,
        look.over_time(per_second("vmalert_iteration_total", ("group",)), "{{group}}", "A"),
        look.over_time(per_second("vmalert_execution_errors_total"), "errors", "B"),
    )
