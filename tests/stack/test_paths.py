# SPDX-License-Identifier: Apache-2.0
"""The ways through the stack besides the bytes: logs, host metrics, a second backend, ports, dashboards."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

import pytest

from .compose import PORTS, Stack, progress, run, wait_for
from .conftest import Birth
from .load import Truth, assert_exact, host_workload

LOGS_FILE = "/var/lib/kernob-collector/logs.jsonl"


def post(url: str, body: object) -> int:
    """Send JSON; the status."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(answer.status)


def log_record(text: str) -> dict[str, object]:
    """An OTLP log request with one event such as the agent will send."""
    record = {
        "timeUnixNano": str(time.time_ns()),
        "severityNumber": 9,
        "body": {"stringValue": text},
        "attributes": [{"key": "event.name", "value": {"stringValue": "kernob.tcp.reset"}}],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "kernob"}}]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}


def file_in(stack: Stack, service: str, path: str) -> str:
    """A file of a running container; empty while there is none."""
    target = Path(f"/proc/{stack.containers()[service]['State']['Pid']}/root{path}")
    return target.read_text() if target.exists() else ""


def test_all_services_are_healthy(healthy: Stack) -> None:
    """Each service has a health check and passes it; each has a memory limit and bounded logs."""
    assert set(healthy.health().values()) == {"healthy"}
    assert sorted(healthy.health()) == healthy.services()
    for name, container in healthy.containers().items():
        host = container["HostConfig"]
        assert host["Memory"] > 0, name
        assert host["RestartPolicy"]["Name"] == "unless-stopped", name
        assert host["LogConfig"]["Config"].get("max-size"), name


def test_ports_are_published_on_loopback_only(healthy: Stack) -> None:
    """Nothing of the stack listens on an address that another machine could reach."""
    for name, container in healthy.containers().items():
        for published in container["NetworkSettings"]["Ports"].values():
            for place in published or []:
                assert place["HostIp"] == "127.0.0.1", name
    ours = {healthy.settings[f"KERNOB_PORT_{name}"] for name in PORTS}
    listening = [line.split()[3] for line in run("ss", "-H", "-t", "-l", "-n").splitlines()]
    addresses = [place for place in listening if place.rpartition(":")[2] in ours]
    assert addresses
    assert {place.rpartition(":")[0] for place in addresses} == {"127.0.0.1"}
    agent = healthy.containers()["agent"]["State"]["Pid"]
    assert f"pid={agent}," not in run("ss", "-H", "-t", "-u", "-l", "-n", "-p")


def test_log_events_arrive(healthy: Stack) -> None:
    """An OTLP log record sent to the Collector is in its file exporter's output, with all it said."""
    text = f"reset by peer {time.time_ns()}"
    assert post(f"{healthy.url('OTLP_HTTP')}/v1/logs", log_record(text)) == 200
    found: list[str] = []

    def is_there() -> bool:
        lines = file_in(healthy, "collector", LOGS_FILE).splitlines(keepends=True)
        found[:] = [line for line in lines if text in line and line.endswith("\n")]  # the last may grow yet
        return bool(found)

    wait_for(is_there, "the log record in the Collector's file", 30)
    (line,) = found
    record = json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert record["attributes"][0]["value"]["stringValue"] == "kernob.tcp.reset"


def test_host_metrics_stand_beside_kernob_s_under_one_host_name(healthy: Stack) -> None:
    """CPU, load, memory, disks, file systems, network, paging, processes: all with the agent's host_name."""
    victoria = healthy.victoria
    (mine,) = {
        each.labels["host_name"]
        for each in victoria.query("count by (host_name) (kernob_probe_attached_ratio)")
    }
    assert mine == os.uname().nodename
    wanted = (
        "system_cpu_time_seconds_total",
        "system_cpu_load_average_1m",
        "system_memory_usage_bytes",
        "system_disk_io_bytes_total",
        "system_disk_operation_time_seconds_total",
        "system_filesystem_usage_bytes",
        "system_network_io_bytes_total",
        "system_processes_count",
        "process_open_file_descriptors",
        "process_disk_io_bytes_total",
    )

    def missing() -> list[str]:
        victoria.flush()
        return [name for name in wanted if not victoria.query(f'{name}{{host_name="{mine}"}}')]

    try:
        wait_for(lambda: not missing(), "all host metrics", 90)
    except TimeoutError:
        names = sorted(
            {each.labels["__name__"] for each in victoria.query('{__name__=~"(system|process)_.+"}')}
        )
        pytest.fail(f"missing: {missing()}; there are: {names}")
    counted = victoria.query('count(system_network_io_bytes_total{device!="lo"})')
    assert counted, "only the container's own loopback interface, not the host's"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_second_backend_gets_everything_too(images: float, protocol: str) -> None:
    """Another OTLP backend, named by environment variables only: here a second Collector stands in for it."""
    del images
    port = {"grpc": 4317, "http": 4318}[protocol]
    settings = {
        "KERNOB_SECOND_ENDPOINT": f"http://second:{port}",
        "KERNOB_SECOND_PROTOCOL": protocol,
        "KERNOB_SECOND_INSECURE": "true",
        "KERNOB_SECOND_HEADERS": "x-test-key=of-the-test,x-other=2",
    }
    stack = Stack("kernob-ci-second", ("tests/stack/fast.yaml", "tests/stack/second.yaml"), settings)

    def arrived() -> str:
        return file_in(stack, "second", "/var/lib/kernob-collector/second.jsonl")

    stack.down(volumes=True)
    try:
        stack.up()
        since_s, truth = time.time(), Truth()
        truth.add(host_workload("many", 5, 100_000))
        assert_exact(stack.victoria, truth, since_s)
        text = f"to both {time.time_ns()}"
        post(f"{stack.url('OTLP_HTTP')}/v1/logs", log_record(text))
        pids = sorted({pid for pid, _ in truth.bytes})
        wanted = ["process.network.io", "system.cpu.time", text, *(f'"intValue":"{pid}"' for pid in pids)]
        wait_for(lambda: not [each for each in wanted if each not in arrived()], f"{wanted} there", 60)
        wait_for(lambda: text in file_in(stack, "collector", LOGS_FILE), "the log record here", 30)
    finally:
        stack.down(volumes=True)


def test_the_files_are_valid_with_every_overlay(images: float) -> None:
    """`docker compose config` says nothing but the configuration, for each set of files."""
    del images
    sets = [["compose.yaml"], ["compose.yaml", "compose/packages.yaml"]]
    sets += [[*files, "compose/least-privilege.yaml"] for files in list(sets)]
    for files in sets:
        options = [word for name in files for word in ("-f", name)]
        config = run("docker", "compose", "-p", "kernob-ci-config", *options, "config", "--quiet")
        assert config == ""
    named = set(run("docker", "compose", "-f", "compose.yaml", "config", "--volumes").split())
    assert named >= {
        "agent-state",
        "collector-queue",
        "victoriametrics-data",
        "victorialogs-data",
        "grafana-data",
    }


def test_times_and_costs_are_told(healthy: Stack, born: tuple[Stack, Birth]) -> None:
    """From `up` (images present) to health and to the first data; memory and CPU of each container."""
    first = born[1]
    progress(
        f"up to healthy {first.healthy_s:.1f} s, to first data in VictoriaMetrics {first.first_data_s:.1f} s"
    )
    ids = [each["Id"] for each in healthy.containers().values()]
    for line in run(
        "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.CPUPerc}}", *ids
    ).splitlines():
        progress(line)
    assert first.first_data_s < 120
