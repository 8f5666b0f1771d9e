# SPDX-License-Identifier: Apache-2.0
"""Host: what the Collector's hostmetrics say beside the network: processor, memory, disks, descriptors.

Kernob leaves these to the Collector (`hostmetrics` receiver); nothing here comes from the agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana import frame, look
from grafana.look import BAD, WARN, Column, Panel, Place, Text
from grafana.query import HOST, NOW, WINDOW, for_each, per_second, select, top, total

UID = "kernob-host"

NO_HOSTMETRICS = "the Collector's hostmetrics do not arrive, or do not include this."
WHO = ("host_name", "process_executable_name", "process_pid")
OTHERS = "process_executable_name=all others"
LEGEND = "{{process_executable_name}} {{process_pid}}"
REAL_DISK = 'device!~"(loop|ram|zram|sr|fd)[0-9]+"'
VIRTUAL = "tmpfs|devtmpfs|overlay|squashfs|ramfs|proc|sysfs|cgroup2?|tracefs|debugfs|bpf|nsfs|autofs"
REAL_FILES = f'type!~"{VIRTUAL}"'
BUSY = {0.7: WARN, 0.9: BAD}
NEARLY = {0.8: WARN, 0.95: BAD}

STAT, HALF, THIRD = Place(4, 4), Place(12, 9), Place(8, 9)


def board() -> Dashboard:
    """The dashboard."""
    about = (
        "The machine beside its network: processor, memory, disks and who uses them, descriptors that leak."
    )
    new = frame.new(UID, "Host", about).with_variable(frame.host("system_cpu_load_average_1m"))
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (
        ("Disks, and who uses them", _disks()),
        ("Processor and memory", _processor_and_memory()),
        ("Descriptors and processes", _descriptors()),
        ("Network", _network()),
    ):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


# ---- expressions ---------------------------------------------------------------------------------


def _by(labels: tuple[str, ...], function: str, metric: str, *matchers: str) -> str:
    return f"{function} by ({','.join(labels)}) ({select(metric, HOST, *matchers)})"


def _busy_cpu(window: str) -> str:
    time = select("system_cpu_time_seconds_total", HOST)
    idle = select("system_cpu_time_seconds_total", HOST, 'state=~"idle|wait"')
    by = ("host_name",)
    return f"1 - {total(idle, by, window)} / {total(time, by, window)}"


def _used_memory() -> str:
    used = _by(("host_name",), "sum", "system_memory_usage_bytes", 'state=~"used|slab_unreclaimable"')
    return f"{used} / {_by(('host_name',), 'sum', 'system_memory_usage_bytes', MEMORY_STATES)}"


MEMORY_STATES = 'state!="inactive"'
"""`inactive` is a part of the other states; each of these holds bytes of its own."""


def _busy_disk(window: str) -> str:
    time = select("system_disk_io_time_seconds_total", HOST, REAL_DISK)
    return per_second(time, ("host_name", "device"), window)


def _full() -> str:
    by = ("host_name", "mountpoint")
    used = _by(by, "max", "system_filesystem_usage_bytes", REAL_FILES, 'state="used"')
    free = _by(by, "max", "system_filesystem_usage_bytes", REAL_FILES, 'state="free"')
    return f"{used} / ({used} + {free})"


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    yield _worst(
        "Processor busy",
        "Time not idle nor waiting for a disk, over the last two minutes.",
        _busy_cpu(NOW),
        BUSY,
    )
    load = _by(("host_name",), "max", "system_cpu_load_average_5m")
    processors = _by(("host_name",), "max", "system_cpu_logical_count")
    yield _worst(
        "Load per processor",
        "Tasks that run or wait, mean of 5 minutes, over the number of processors. Above 1, work queues.",
        f"{load} / {processors}",
        {1.0: WARN, 2.0: BAD},
    )
    says = "Without caches and buffers, which the kernel gives back."
    yield _worst("Memory used", says, _used_memory(), BUSY)
    says = "Part of the last two minutes in which it had work."
    yield _worst("Busiest disk", says, _busy_disk(NOW), NEARLY)
    yield _worst("Fullest file system", "Used over used and free.", _full(), NEARLY)
    text = Text(
        "Most descriptors",
        "Open file descriptors of the process that has most. Whether it leaks is in the row Descriptors.",
        NO_HOSTMETRICS,
        "no hostmetrics",
    )
    most = f"topk(1, {_by(WHO, 'sum', 'process_open_file_descriptors')})"
    panel = look.stat(text, look.COUNT, STAT, look.at_end(most, LEGEND))
    yield panel.thresholds(look.thresholds({1000.0: WARN, 10000.0: BAD})).links([_to_bandwidth()])


def _worst(title: str, says: str, expression: str, levels: Mapping[float, str]) -> Panel:
    text = Text(title, f"{says} Of several, the highest.", NO_HOSTMETRICS, "no hostmetrics")
    panel = look.stat(text, look.SHARE, STAT, look.at_end(f"max({expression})", title))
    return panel.decimals(0).thresholds(look.thresholds(levels)).links([_to_bandwidth()])


def _to_bandwidth() -> frame.Link:
    return frame.see("Who owns the network", "kernob-bandwidth")


# ---- disks ---------------------------------------------------------------------------------------


def _disks() -> Iterator[Panel]:
    text = Text(
        "Disks' busy time",
        "Part of the time in which a disk had work. Near 100 % a spinning disk is saturated; an NVMe drive "
        "may still take more in parallel.",
        NO_HOSTMETRICS,
    )
    busy = look.over_time(_busy_disk(WINDOW), "{{device}} {{host_name}}")
    yield look.limited(look.lines(text, look.SHARE, THIRD, busy).axis_soft_max(1), NEARLY)
    for direction, verb in (("read", "read from"), ("write", "written to")):
        text = Text(
            f"Disks: {direction}", f"Bytes a second {verb} each disk, as its driver counts.", NO_HOSTMETRICS
        )
        moved = select("system_disk_io_bytes_total", HOST, REAL_DISK, f'direction="{direction}"')
        rate = per_second(moved, ("host_name", "device"))
        yield look.stacked(text, look.BYTES_PER_S, THIRD, look.over_time(rate, "{{device}} {{host_name}}"))
    for direction, verb in (("read", "read from"), ("write", "written to")):
        text = Text(
            f"Who uses the disks: {direction}",
            f"Bytes a second each process caused to be {verb} storage (/proc/PID/io), by executable and PID. "
            "The owner of a saturated disk stands on top.",
            "no process used a disk, or the Collector may not read /proc/PID/io (it needs CAP_SYS_PTRACE).",
        )
        moved = select("process_disk_io_bytes_total", HOST, f'direction="{direction}"')
        ranked = top(8, per_second(moved, WHO), OTHERS)
        yield look.stacked(text, look.BYTES_PER_S, HALF, look.over_time(ranked, LEGEND))
    yield _disk_users()
    text = Text(
        "File systems",
        "How full each mounted file system is; network and pseudo file systems of the kernel left out.",
        NO_HOSTMETRICS,
    )
    panel = look.bars(text, look.SHARE, Place(8, 9), look.at_end(_full(), "{{mountpoint}}"))
    yield panel.max(1).thresholds(look.thresholds(NEARLY))


def _disk_users() -> Panel:
    text = Text(
        "Bytes from and to disks in this range",
        "The 20 processes that moved most between storage and memory in the range on the screen.",
        "no process used a disk, or the Collector may not read /proc/PID/io.",
        "none",
    )
    moved = "process_disk_io_bytes_total"
    ranking = f"topk(20, {total(select(moved, HOST), WHO)} > 0)"
    read, written = (
        for_each(ranking, total(select(moved, HOST, matcher), WHO))
        for matcher in ('direction="read"', 'direction="write"')
    )
    columns = (
        Column("process_executable_name", "Process"),
        Column("process_pid", "PID", width=90),
        Column("Value #A", "Read", look.BYTES, 120),
        Column("Value #B", "Written", look.BYTES, 120, sorted=True),
        Column("host_name", "Host", width=120),
    )
    return look.table(text, Place(16, 9), columns, look.rows(read, "A"), look.rows(written, "B"))


# ---- processor and memory ------------------------------------------------------------------------


def _processor_and_memory() -> Iterator[Panel]:
    text = Text(
        "Processor by state",
        "Processors' time by what they did, in processors: 2 is two of them all the time. Idle is left "
        "out; `steal` is time a hypervisor gave to others.",
        NO_HOSTMETRICS,
    )
    time = select("system_cpu_time_seconds_total", HOST, 'state!="idle"')
    yield look.stacked(text, look.COUNT, THIRD, look.over_time(per_second(time, ("state",)), "{{state}}"))
    text = Text("Load", "Tasks that run or wait, averaged over 1, 5 and 15 minutes.", NO_HOSTMETRICS)
    loads = [
        look.over_time(_by(("host_name",), "max", f"system_cpu_load_average_{minutes}"), legend, ref)
        for minutes, legend, ref in (
            ("1m", "1 min {{host_name}}", "A"),
            ("5m", "5 min {{host_name}}", "B"),
            ("15m", "15 min {{host_name}}", "C"),
        )
    ]
    yield look.lines(text, look.COUNT, THIRD, *loads)
    text = Text("Memory by state", "Where the machine's memory is.", NO_HOSTMETRICS)
    memory = _by(("state",), "sum", "system_memory_usage_bytes", MEMORY_STATES)
    yield look.stacked(text, look.BYTES, THIRD, look.over_time(memory, "{{state}}"))
    text = Text(
        "Processor by process",
        "Processors each process used, by executable and PID.",
        NO_HOSTMETRICS,
    )
    used = select("process_cpu_time_seconds_total", HOST, 'process_pid!=""')
    ranked = top(8, per_second(used, WHO), OTHERS)
    yield look.stacked(text, look.COUNT, THIRD, look.over_time(ranked, LEGEND))
    text = Text(
        "Memory by process",
        "Resident memory of the processes that have most; what they share counts for each.",
        NO_HOSTMETRICS,
    )
    resident = f"topk_max(8, {_by(WHO, 'sum', 'process_memory_usage_bytes', _OF_HOSTMETRICS)})"
    yield look.lines(text, look.BYTES, THIRD, look.over_time(resident, LEGEND))
    text = Text(
        "Paging",
        "Pages a second read from and written to disk for lack of memory (major faults and swapping).",
        NO_HOSTMETRICS,
    )
    paging = select("system_paging_operations_total", HOST)
    rate = per_second(paging, ("direction", "type"))
    yield look.lines(text, look.COUNT, THIRD, look.over_time(rate, "{{direction}} {{type}}"))


_OF_HOSTMETRICS = 'process_pid!=""'
"""The agent sends process.cpu.time and process.memory.usage of its own, without a PID."""


# ---- descriptors, processes ----------------------------------------------------------------------


def _descriptors() -> Iterator[Panel]:
    descriptors = _by(WHO, "sum", "process_open_file_descriptors")
    text = Text(
        "Open descriptors",
        "Open file descriptors of the processes that have most.",
        NO_HOSTMETRICS,
    )
    yield look.lines(text, look.COUNT, HALF, look.over_time(f"topk_max(10, {descriptors})", LEGEND))
    text = Text(
        "Descriptors gained in this range",
        "How many more (or fewer) descriptors a process has at the range's end than at its beginning, and "
        "how many it gains an hour by a straight line through all samples. A leak grows in every range you "
        "choose; a busy server goes up and down. A process that was not there at the beginning counts from "
        "its first sample.",
        f"no process holds more descriptors than at the beginning, or {NO_HOSTMETRICS}",
        "nobody gained any",
    )
    samples = select("process_open_file_descriptors", HOST)
    who = ",".join(WHO)
    grown = f"last_over_time({samples}[$__range]) - first_over_time({samples}[$__range])"
    gained = f"sum by ({who}) ({grown})"
    slope = f"sum by ({who}) (deriv({samples}[$__range])) * 3600"
    ranking = f"topk(15, {gained} > 0)"
    columns = (
        Column("process_executable_name", "Process"),
        Column("process_pid", "PID", width=80),
        Column("Value #A", "Open", look.COUNT, 80),
        Column("Value #B", "Gained", look.COUNT, 80, levels={50: WARN, 500: BAD}, sorted=True),
        Column("Value #C", "Per hour", look.COUNT, 90),
        Column("host_name", "Host", width=100),
    )
    queries = (for_each(ranking, descriptors), ranking, for_each(ranking, slope))
    yield look.table(text, HALF, columns, *(look.rows(q, ref) for q, ref in zip(queries, "ABC", strict=True)))
    text = Text("Processes by state", "Processes of the machine by what they are doing.", NO_HOSTMETRICS)
    count = _by(("status",), "sum", "system_processes_count")
    yield look.stacked(text, look.COUNT, HALF, look.over_time(f"{count} > 0", "{{status}}"))
    text = Text(
        "Processes created",
        "New processes and threads a second. A crash loop or a shell script in a loop shows here.",
        NO_HOSTMETRICS,
    )
    created = per_second(select("system_processes_created_total", HOST), ("host_name",))
    yield look.lines(text, "cps", HALF, look.over_time(created, "{{host_name}}"))


# ---- network -------------------------------------------------------------------------------------


def _network() -> Iterator[Panel]:
    for direction, verb in (("transmit", "sent"), ("receive", "received")):
        text = Text(
            f"Interfaces: {verb}",
            f"Bytes a second each interface {verb}, headers included; bridges and their ends count again.",
            NO_HOSTMETRICS,
        )
        io = select("system_network_io_bytes_total", HOST, f'direction="{direction}"')
        rate = top(8, per_second(io, ("host_name", "device")))
        panel = look.lines(text, look.BYTES_PER_S, THIRD, look.over_time(rate, "{{device}} {{host_name}}"))
        yield panel.links([_to_bandwidth()])
    text = Text(
        "Interfaces: errors and drops",
        "Packets a second an interface could not send or receive, or threw away.",
        f"{NO_HOSTMETRICS} Curves at 0 are as it should be.",
    )
    by = ("host_name", "device", "direction")
    queries = [
        look.over_time(
            top(6, per_second(select(f"system_network_{kind}_total", HOST), by)),
            f"{kind} {{{{device}}}} {{{{direction}}}}",
            ref,
        )
        for kind, ref in (("errors", "A"), ("dropped", "B"))
    ]
    yield look.lines(text, "pps", THIRD, *queries)
