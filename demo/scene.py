# SPDX-License-Identifier: Apache-2.0
"""Where a story happens: the business, the stack, ways of asking both, and what is told of it.

Given to each story's `run`. A story calls `expect` and `must` for what it claims, `log` and `says` for what
it tells. `faulty` says whether its fault is to be injected; without it, the harmless twin runs instead.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from compose.project import Stack, StackError, run
from compose.victoria import QueryError, Sample

from .business import Business
from .owned import BrokenError, Running
from .screen import Screen
from .story import MissingError

T = TypeVar("T")
_POLL_S = 1.0
_LOG_FILE = "/var/lib/kernob-collector/logs.jsonl"
PATIENCE = 3
_STARTING_S = 30
"""A command may take so long to start on a busy machine, and counts its `--since` from then."""


@dataclass(frozen=True)
class Alert:
    """An alert that fires."""

    name: str
    labels: dict[str, str]
    summary: str
    description: str


def clock(unix_s: float) -> str:
    """The time of day (UTC) to the millisecond.

    >>> clock(1.5)
    '00:00:01.500'
    """
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%H:%M:%S.%f")[:-3]


def amount(value: float) -> str:
    """Bytes, readable.

    >>> amount(20_500_000)
    '20.5 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


@dataclass
class Scene:
    """One story's. `began_s` is its beginning, Unix time."""

    business: Business
    stack: Stack
    screen: Screen
    faulty: bool
    grafana: bool
    agent_id: str
    name: str
    began_s: float = field(default_factory=time.time)
    told: list[tuple[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _programs: list[Running] = field(default_factory=list)

    def program(self, script: str, *arguments: object, word: str, name: str = "") -> Running:
        """A program of demo/services, once its log has `word`; it ends with the story."""
        running = self.business.program(script, *arguments, name=name)
        self._programs.append(running)
        self.business.wait_for_word(running.name, word)
        return running

    def close(self) -> None:
        """End what the story started."""
        for running in reversed(self._programs):
            running.end()

    # ---- what is claimed ----------------------------------------------------------------------------

    def expect(self, what: str, probe: Callable[[], T | None], limit_s: float) -> T:
        """What `probe` finds, asked again and again; MissingError if that is nothing within the time.

        The time is what it takes at most on a machine that has some to spare; a busy one gets three times as
        much, but not where nothing is injected: there it is only waited for what must not come.
        """
        limit_s *= PATIENCE if self.faulty else 1
        found = self._wait(what, probe, limit_s)
        if not found:
            raise MissingError(f"{what}, within {limit_s:.0f} s")
        return found

    def needs(self, what: str, probe: Callable[[], T | None], limit_s: float) -> T:
        """The same for what has to be so before there is any fault; BrokenError if it never is.

        So that a story without its fault does not fail for want of something else, as if it had to.
        """
        limit_s *= PATIENCE
        found = self._wait(what, probe, limit_s)
        if not found:
            raise BrokenError(f"{what}: not within {limit_s:.0f} s, and nothing was injected yet")
        return found

    def _wait(self, what: str, probe: Callable[[], T | None], limit_s: float) -> T | None:
        deadline_s = time.monotonic() + limit_s
        self.screen.doing(f"{self.name}: waits for {what}")
        while not (found := self._try(probe)):
            if time.monotonic() > deadline_s:
                return None
            self.pause(_POLL_S)
        return found

    @staticmethod
    def _try(probe: Callable[[], T | None]) -> T | None:
        try:
            return probe()
        except (QueryError, StackError, OSError):
            return None  # a busy machine; asked again

    def must(self, holds: object, what: str) -> None:
        """Claim it: told if it holds, MissingError if not."""
        if not holds:
            raise MissingError(what)
        self.told.append(("check", what))

    def pause(self, seconds: float) -> None:
        """Sleep; ends at once when the demo does."""
        if self.ended.wait(seconds):
            raise KeyboardInterrupt

    # ---- what is told -------------------------------------------------------------------------------

    def says(self, text: str) -> None:
        """What Kernob shows."""
        self.told.append(("kernob", text))

    def log(self, text: str) -> None:
        """What the application's own log shows."""
        self.told.append(("log", text))

    def fault(self, text: str) -> None:
        """What was done."""
        self.told.append(("fault", text))

    def see(self, board: str, **variables: str) -> None:
        """Where to look: a dashboard (its uid) at this story's time; vmui where there is no Grafana."""
        words = {f"var-{k}": v for k, v in variables.items()}
        if self.grafana:
            begin, end = int((self.began_s - 60) * 1000), int((time.time() + 30) * 1000)
            query = urllib.parse.urlencode({**words, "from": begin, "to": end})
            self.told.append(("see", f"{self.stack.url('GRAFANA')}/d/{board}?{query}"))
        else:
            self.told.append(
                ("see", f"dashboard {board}" + "".join(f", {k} {v}" for k, v in variables.items()))
            )

    # ---- what is asked ------------------------------------------------------------------------------

    def query(self, expression: str) -> list[Sample]:
        """MetricsQL, now, of everything that has arrived."""
        self.stack.victoria.flush()
        return self.stack.victoria.query(expression)

    def value(self, expression: str) -> float | None:
        """The value of a query with one series at most; None for none."""
        found = self.query(expression)
        return found[0].value if found else None

    def grown(self, metric: str, selector: str) -> float:
        """What a counter grew by since the story began."""
        window_s = int(time.time() - self.began_s) + 1
        return self.value(f"sum(increase({metric}{{{selector}}}[{window_s}s]))") or 0.0

    def firing(self, name: str, **labels: str) -> list[Alert]:
        """Alerts of this name, with these labels, that fire now."""
        with urllib.request.urlopen(f"{self.stack.url('VMALERT')}/api/v1/alerts", timeout=10) as answer:
            found = json.loads(answer.read())["data"]["alerts"] or []
        return [
            Alert(
                name,
                each["labels"],
                " ".join(each["annotations"].get("summary", "").split()),
                " ".join(each["annotations"].get("description", "").split()),
            )
            for each in found
            if each["name"] == name and each["state"] == "firing" and labels.items() <= each["labels"].items()
        ]

    def kernob(self, *words: str) -> str:
        """What a `kernob` command prints in the agent's container."""
        return run("docker", "exec", self.agent_id, "kernob", *words, limit_s=60)

    def events(self, kind: str, service: str) -> list[dict[str, Any]]:
        """Events of this story's time, from `kernob events`; `kind` is the last word of theirs."""
        since = f"{int(time.time() - self.began_s) + _STARTING_S}s"
        words = ("events", "--json", "--since", since, "--kind", kind, "--service", service)
        found = [json.loads(line) for line in self.kernob(*words).splitlines()]
        return [event for event in found if event["time_unix_ns"] >= self.began_s * 1e9]

    def document(self, *words: str) -> dict[str, Any]:
        """What a `kernob` command prints as one JSON document."""
        found: dict[str, Any] = json.loads(self.kernob(*words, "--json"))
        return found

    def delivered(self, event: dict[str, Any]) -> None:
        """Claim that an event came out of the Collector as well, word for word."""
        self.expect(
            f"{event['kind']} as an OTLP log record", lambda: event["body"] in self._bodies(event["kind"]), 30
        )
        self.must(True, f"{event['kind']} came out of the Collector as an OTLP log record")

    def _bodies(self, kind: str) -> list[str]:
        """What events of a kind say in VictoriaLogs, or in the Collector's file where there is none."""
        if "victorialogs" in self.stack.services():
            query = urllib.parse.urlencode({"query": f'event.name:="{kind}"'})
            address = f"{self.stack.url('VICTORIALOGS')}/select/logsql/query?{query}"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return [json.loads(line)["_msg"] for line in answer.read().splitlines()]
        identity = self.stack.containers()["collector"]["Id"]
        lines = run("docker", "exec", identity, "/busybox", "grep", "-hF", kind, _LOG_FILE).splitlines()
        return [
            record["body"]
            for line in lines
            for record in records(json.loads(line))
            if record["event.name"] == kind
        ]


def records(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Log records of one OTLP/JSON line as flat dictionaries, with `time_unix_ns` and `body`.

    >>> records({"resourceLogs": [{"scopeLogs": [{"logRecords": [{
    ...     "timeUnixNano": "7", "body": {"stringValue": "b"}, "attributes": [
    ...         {"key": "event.name", "value": {"stringValue": "k"}}]}]}]}]})
    [{'time_unix_ns': 7, 'body': 'b', 'event.name': 'k'}]
    """
    return [
        {
            "time_unix_ns": int(record["timeUnixNano"]),
            "body": record["body"]["stringValue"],
            **{each["key"]: next(iter(each["value"].values())) for each in record["attributes"]},
        }
        for resource in document.get("resourceLogs", [])
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]
