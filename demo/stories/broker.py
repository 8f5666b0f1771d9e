# SPDX-License-Identifier: Apache-2.0
"""The broker silently drops idle connections.

A reporter holds a pooled connection to RabbitMQ with a heartbeat of two seconds and, busy with other things,
does not beat. RabbitMQ closes it after about six, by a RST. The reporter's log has nothing of it: it will
notice when it publishes next. Kernob has the RST, idle, at the very time of RabbitMQ's own log.
Without the fault the reporter beats.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from demo.scene import Scene, clock
from demo.story import Story

SERVICE = "reports.py"
HEARTBEAT_S = 2
CLOSE_ENOUGH_S = 0.050
_CLOSED = r"^(\S+ \S+) \[error\] .*closing AMQP connection .*:{port} -> "


def closed_at(log: str, port: int) -> float | None:
    """Unix time at which RabbitMQ's log says that it closes the connection from this port.

    >>> closed_at("2026-11-28 17:14:07.721398+00:00 [error] <0.7.0> closing AMQP connection <0.7.0> "
    ...           "(127.0.0.1:45574 -> 127.0.0.1:36319):", 45574)
    1795886047.721398
    """
    found = re.search(_CLOSED.format(port=port), log, re.MULTILINE)
    return datetime.fromisoformat(found.group(1)).timestamp() if found else None


def run(scene: Scene) -> None:
    """See the module."""
    business = scene.business
    manner = "forgets" if scene.faulty else "beats"
    reporter = scene.program(
        SERVICE, f"127.0.0.1:{business.ports['rabbit']}", HEARTBEAT_S, manner, word="working on report 2"
    )
    port = int(reporter.lines()[-1].split("from port ")[1].split(";")[0])
    scene.fault(f"{SERVICE} (PID {reporter.pid}) holds a connection to RabbitMQ and forgets to beat")

    def reset() -> dict[str, Any] | None:
        found = scene.events("reset", SERVICE)
        return next((e for e in found if e["pid"] == reporter.pid and e["direction"] == "receive"), None)

    event = scene.expect("a RST that the reporter received", reset, 40)
    when_s = event["time_unix_ns"] / 1e9
    scene.log(f"{reporter.lines()[-1]}   (its last line, {when_s - scene.began_s:.1f} s before)")
    scene.says(f"{clock(when_s)} {event['body']}")

    said_s = scene.expect("RabbitMQ's own line", lambda: closed_at(business.rabbit_log.read_text(), port), 10)
    apart_s = when_s - said_s
    scene.must(
        abs(apart_s) <= CLOSE_ENOUGH_S,
        f"RabbitMQ's log has {clock(said_s)} for it: {apart_s * 1e3:+.1f} ms apart, allowed are 50",
    )
    scene.must(event["idle"], "marked idle: no exchange was open")
    chosen = f'kernob_service="{SERVICE}",network_io_direction="receive",kernob_reset_idle="true"'
    resets = scene.expect("the RST as a metric", lambda: scene.grown("kernob_tcp_resets_total", chosen), 30)
    scene.must(resets == 1, "kernob.tcp.resets grew by exactly 1 in VictoriaMetrics")
    scene.delivered(event)
    scene.see("kernob-tcp", service=SERVICE)


STORY = Story("broker", "The broker drops an idle connection without a word", run)
