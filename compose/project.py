# SPDX-License-Identifier: Apache-2.0
"""Brings the stack of compose.yaml up under a project name and on ports of its own.

Enters: a project name, compose files, settings of .env. Leaves: running services, their figures, their end.
Called by the demo and the tests of the stack. Only `docker compose` and `docker` are used, as a person would.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .victoria import Victoria

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compose.yaml", "compose/packages.yaml")
"""The stack from packages, for machines that reach no image registry."""
PORTS = ("OTLP_GRPC", "OTLP_HTTP", "VICTORIAMETRICS", "VMALERT", "VICTORIALOGS", "GRAFANA")
COMMAND_LIMIT_S = 300.0


class StackError(Exception):
    """A command of Docker's failed; the message holds what it said."""


def progress(text: str) -> None:
    """Say what goes on, also where pytest keeps the output; the default of `Stack.say`."""
    sys.__stderr__.write(f"stack {time.strftime('%H:%M:%S')}: {text}\n")  # type: ignore[union-attr]
    sys.__stderr__.flush()  # type: ignore[union-attr]


def run(*command: str, env: dict[str, str] | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
    """Run a command at the repository's root; what it printed. StackError if it fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"{' '.join(command)}: not done after {limit_s:.0f} s") from error
    if done.returncode:
        raise StackError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in socks]


def wait_for(
    condition: Callable[[], object], what: str, limit_s: float = 120.0, every_s: float = 0.5
) -> float:
    """Poll until it holds; the seconds it took. TimeoutError names `what`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(every_s)
    return time.monotonic() - began


@dataclass
class Stack:
    """One compose project. Settings are variables of .env; `overlays` are further compose files."""

    project: str
    overlays: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    base: tuple[str, ...] = PACKAGES
    say: Callable[[str], None] = progress

    def __post_init__(self) -> None:
        """Choose ports that are free now, unless the settings name them."""
        for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
            self.settings.setdefault(f"KERNOB_PORT_{name}", str(port))

    @property
    def environment(self) -> dict[str, str]:
        """What compose sees: this machine's environment without settings of the user's, and ours."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KERNOB_", "OTEL_", "COMPOSE_"))}
        return kept | self.settings | {"COMPOSE_DISABLE_ENV_FILE": "1"}

    @property
    def files(self) -> list[str]:
        """The options that name the compose files."""
        return [word for name in (*self.base, *self.overlays) for word in ("-f", name)]

    def compose(self, *arguments: str, limit_s: float = COMMAND_LIMIT_S) -> str:
        """`docker compose` on this project."""
        words = ("docker", "compose", "-p", self.project, *self.files, *arguments)
        return run(*words, env=self.environment, limit_s=limit_s)

    @property
    def victoria(self) -> Victoria:
        """VictoriaMetrics' API."""
        return Victoria(self.url("VICTORIAMETRICS"))

    def url(self, name: str) -> str:
        """http://127.0.0.1:port of a published port."""
        return f"http://127.0.0.1:{self.settings[f'KERNOB_PORT_{name}']}"

    def up(self, *services: str) -> float:
        """Start (what is not running) and wait until all is healthy; the seconds it took."""
        began = time.monotonic()
        self.say(f"{self.project}: up {' '.join(services)}")
        try:
            self.compose("up", "-d", "--wait", "--wait-timeout", "240", *services)
        except StackError as error:
            raise StackError(f"{error}\n{self.last_words()}") from error
        took_s = time.monotonic() - began
        self.say(f"{self.project}: up after {took_s:.1f} s")
        return took_s

    def down(self, volumes: bool = False) -> None:
        """Stop and remove the containers and networks; with `volumes` the data too."""
        self.say(f"{self.project}: down{' with volumes' if volumes else ''}")
        self.compose("down", "--remove-orphans", "--timeout", "20", *(["--volumes"] if volumes else []))

    def services(self) -> list[str]:
        """Names of the services that this set of files starts."""
        return sorted(self.compose("config", "--services").split())

    def containers(self) -> dict[str, dict[str, Any]]:
        """What `docker inspect` says, by service, of containers running or not."""
        ids = self.compose("ps", "-a", "-q").split()
        found = json.loads(run("docker", "inspect", *ids)) if ids else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def health(self) -> dict[str, str]:
        """By service: healthy, unhealthy, starting, or the container's state where it has no check."""
        return {
            name: each["State"].get("Health", {}).get("Status", each["State"]["Status"])
            for name, each in self.containers().items()
        }

    def kill(self, service: str, signal: str = "SIGKILL") -> None:
        """Send a signal and wait until the container has ended, however it is restarted."""
        started = self.containers()[service]["State"]["StartedAt"]
        self.say(f"{self.project}: {signal} to {service}")
        self.compose("kill", "-s", signal, service)

        def over() -> bool:
            state = self.containers()[service]["State"]
            return not state["Running"] or bool(state["StartedAt"] != started)

        wait_for(over, f"{service} to end by {signal}", 60, 0.2)

    def start(self, service: str) -> None:
        """Start it again and wait until it is healthy."""
        self.compose("start", service)
        wait_for(lambda: self.health()[service] in ("healthy", "running"), f"{service} to be healthy")

    def stop(self, service: str) -> None:
        """Stop it in order."""
        self.say(f"{self.project}: stop {service}")
        self.compose("stop", "--timeout", "20", service)

    def logs(self, service: str) -> str:
        """What a service's container printed, standard output and error in one."""
        identity = self.containers()[service]["Id"]
        command = ["docker", "logs", identity]
        return subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=True
        ).stdout

    def last_words(self, lines: int = 20) -> str:
        """The last lines of each service, cut where they are long."""
        found = []
        for service in self.containers():
            found += [f"{service}: {line[:400]}" for line in self.logs(service).splitlines()[-lines:]]
        return "\n".join(found)
