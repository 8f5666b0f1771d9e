# SPDX-License-Identifier: Apache-2.0
"""The truth table of hostnames: programs of many languages, answers that rotate, every byte on its name.

Exceptions, which docs/names.md states: the resolver itself is an address; a program that is linked statically
and asks by unconnected UDP (musl) is named by its network namespace, not by process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import WORKLOADS, running_agent
from names_net import HOSTS, PORT, bytes_by_host, expected, network
from otlp import Totals

CLIENTS = WORKLOADS / "name_clients"
ROUNDS, PAUSE_S = "5", "0.5"
RUN = (ROUNDS, PAUSE_S, str(PORT), *HOSTS)


@dataclass(frozen=True)
class Program:
    """`build` makes it out of its source in a directory ({} stands for that), `run` starts it."""

    needs: str
    build: tuple[str, ...]
    run: tuple[str, ...]


PROGRAMS = {
    "go": Program("go", ("go", "build", "-o", "{}/go", str(CLIENTS / "client.go")), ("{}/go", *RUN)),
    "musl": Program(
        "musl-gcc",
        ("musl-gcc", "-static", "-s", "-o", "{}/musl", str(CLIENTS / "client.c")),
        ("{}/musl", *RUN),
    ),
    "musl-shared": Program(
        "musl-gcc", ("musl-gcc", "-o", "{}/shared", str(CLIENTS / "client.c")), ("{}/shared", *RUN)
    ),
    "rust": Program("rustc", ("rustc", "-o", "{}/rust", str(CLIENTS / "client.rs")), ("{}/rust", *RUN)),
    "java": Program(
        "javac",
        ("javac", "-d", "{}", str(CLIENTS / "Client.java")),
        ("java", "-XX:TieredStopAtLevel=1", "-Dsun.net.inetaddr.ttl=0", "-cp", "{}", "Client", *RUN),
    ),
    "node": Program("node", (), ("node", str(CLIENTS / "client.js"), "lookup", *RUN)),
    "node-c-ares": Program("node", (), ("node", str(CLIENTS / "client.js"), "resolve", *RUN)),
}


@dataclass(frozen=True)
class Ran:
    """What the programs said of themselves, and the agent of them."""

    told: dict[str, dict[str, Any]]
    totals: Totals


@pytest.fixture(scope="module")
def ran(agents: Path) -> Iterator[Ran]:
    """Every program that can be had here, all at the same time, in one network namespace."""
    room = agents / "programs"
    room.mkdir()
    present = {name: p for name, p in PROGRAMS.items() if shutil.which(p.needs)}
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    for program in present.values():
        if program.build:
            command = [part.format(room) for part in program.build]
            subprocess.run(["env", *(f"{k}={v}" for k, v in environment.items()), *command], check=True)
    with running_agent(agents / "names-programs") as agent, network(agents / "net-programs") as net:
        running = {
            name: subprocess.Popen(
                [*net.prefix, *(part.format(room) for part in program.run)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, program in present.items()
        }
        told = {}
        for name, process in running.items():
            out, errors = process.communicate()
            assert process.returncode == 0, f"{name}: {errors}"
            told[name] = json.loads(out.splitlines()[-1])
        agent.wait_exports(2)
        yield Ran(told, agent.stop())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_byte_of_a_program_lands_on_its_hostname(ran: Ran, name: str) -> None:
    """What was exchanged with each name equals what the program counted; nothing is on an address."""
    if name not in ran.told:
        pytest.skip(f"missing feature: {PROGRAMS[name].needs}")
    assert bytes_by_host(ran.totals, ran.told[name]["pid"]) == expected(ran.told[name])


def test_curl_lands_on_its_hostname(agents: Path) -> None:
    """One process a request: what curl says it sent and received is what stands under the host."""
    if not shutil.which("curl"):
        pytest.skip("missing feature: curl")
    said = "%{size_request} %{size_header} %{size_download}"
    with running_agent(agents / "names-curl") as agent, network(agents / "net-curl") as net:
        told = {}
        for host in HOSTS:
            command = ["curl", "-s", "-o", "/dev/null", "-w", said, f"http://{host}:{PORT}/"]
            process = subprocess.Popen([*net.prefix, *command], stdout=subprocess.PIPE, text=True)
            request, header, body = map(int, process.communicate()[0].split())
            told[process.pid] = {host: (request, header + body)}
        agent.wait_exports(2)
        totals = agent.stop()
    assert {pid: bytes_by_host(totals, pid) for pid in told} == told
