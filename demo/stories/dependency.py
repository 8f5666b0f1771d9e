# SPDX-License-Identifier: Apache-2.0
"""A dependency goes bad in seven ways; the shop's log says "payment pending" to all of them.

The payment service is reached by name, through four addresses that rotate. Faults of the network are
nftables rules outside, faults of the service are its own (services/payments.py). Kernob tells which it is,
and that it is over. Without the faults nothing is done to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from demo.business import PAYMENTS_NAME, PAYMENTS_PORT, orders_in_log
from demo.network import rule
from demo.scene import Scene, clock
from demo.story import PAYMENTS, Story

from . import scores

SERVICE = "shop.py"
CHOSEN = f'kernob_service="{SERVICE}",server_port="{PAYMENTS_PORT}",network_tcp_handshake_role="client"'
SEGMENT_BYTES = 1448
SILENT_LEAST = 3
LOSS_SEGMENTS, LOSS_LEAST, LOSS_MOST = 2000, 0.02, 0.06
LOSS_REST = 0.005
"""What a busy machine sends again for nothing, at most."""
LOSS_SCORE = 0.3
"""Of packet health: at 2 % loss it is a quarter; a machine that is too busy for timely ACKs has half."""


Injection = Callable[[Scene], AbstractContextManager[None]]


def serves(mode: str) -> Injection:
    """The payment service behaves so, for a while."""

    @contextlib.contextmanager
    def injection(scene: Scene) -> Iterator[None]:
        scene.business.payments(mode)
        try:
            yield
        finally:
            scene.business.payments("ok")

    return injection


def packets(text: str) -> Injection:
    """A rule on packets to it, for a while."""
    return lambda _scene: rule(f"tcp dport {PAYMENTS_PORT} {text}")


@dataclass(frozen=True)
class Fault:
    """What is done to the payment service, in words and in deed."""

    what: str
    inject: Injection

    def during(self, scene: Scene) -> AbstractContextManager[None]:
        """The fault, told; nothing where the demo runs without faults."""
        if not scene.faulty:
            return contextlib.nullcontext()
        scene.fault(f"{PAYMENTS_NAME} {self.what}")
        return self.inject(scene)


@dataclass(frozen=True)
class Count:
    """A counter that grows while the fault lasts, to `least`, and the events beside it."""

    metric: str
    error: str
    least: int
    kind: str
    words: str
    dimension: str


def pending(scene: Scene) -> int:
    """Orders that the shop's log calls pending."""
    return orders_in_log(scene.business.running["shop"].lines(), "payment pending")


def tell_log(scene: Scene, before: int) -> None:
    """What the shop's log says meanwhile."""
    lines = scene.business.running["shop"].lines()
    if (more := orders_in_log(lines, "payment pending") - before) > 0:
        last = next(line for line in reversed(lines) if line.endswith("pending"))
        scene.log(f"{last}   (and {more - 1} more such lines; nothing of the reason)")
    else:
        scene.log(f"{lines[-1]}   (no line of it)")


def recovers(scene: Scene, metric: str, selector: str) -> None:
    """Payments go through again, and the fault is counted no more."""
    paid = orders_in_log(scene.business.running["shop"].lines(), "paid")
    scene.expect(
        "payments to go through again",
        lambda: orders_in_log(scene.business.running["shop"].lines(), "paid") >= paid + 8, 60,
    )  # fmt: skip
    grown = f"sum(increase({metric}{{{selector}}}[10s]))"
    scene.expect("its end in the metrics", lambda: not scene.value(grown), 60)
    scene.must(True, "the fault is taken away: payments go through, the counter rests")


def by_name(scene: Scene, kind: str) -> None:
    """All of it stands under the one name, though it happened at several addresses."""

    def addresses() -> set[str] | None:
        found = [e for e in scene.events(kind, SERVICE) if e["port"] == PAYMENTS_PORT]
        peers = {e["peer"] for e in found}
        return peers if len(peers) > 1 and {e["address"] for e in found} == {PAYMENTS_NAME} else None

    peers = scene.expect("the name for several addresses", addresses, 30)
    scene.must(True, f"at {len(peers)} addresses that rotate, all under {PAYMENTS_NAME}")


def counted(name: str, title: str, fault: Fault, count: Count) -> Story:
    """A story of a counter and its events."""
    selector = f'error_type="{count.error}"'

    def run(scene: Scene) -> None:
        """Well before; then what the fault makes, by counter, event and score."""
        scores.well(scene, count.dimension)
        before = pending(scene)
        with fault.during(scene):

            def enough() -> float | None:
                grown = scene.grown(count.metric, f"{CHOSEN},{selector}")
                return grown if grown >= count.least else None

            grown = scene.expect(f"{count.least} {count.words}", enough, 60)
            tell_log(scene, before)
            events = scene.expect(f"an event {count.kind}", lambda: scene.events(count.kind, SERVICE), 20)
            scene.says(f"{clock(events[-1]['time_unix_ns'] / 1e9)} {events[-1]['body']}")
            scene.delivered(events[-1])
            scene.must(True, f"{grown:.0f} {count.words} in VictoriaMetrics, charged to {SERVICE}")
            by_name(scene, count.kind)
            scores.falls(scene, count.dimension, 0.7)
        recovers(scene, count.metric, f"{CHOSEN},{selector}")
        scores.recovers(scene, count.dimension)
        scene.see("kernob-dependency", service=SERVICE)

    return Story(name, title, run, PAYMENTS)


P95 = (
    f"histogram_quantile(0.95, sum by (vmrange) "
    f"(increase(kernob_tcp_response_duration_seconds_bucket{{{CHOSEN}}}[15s])))"
)


def run_slow(scene: Scene) -> None:
    """50 ms more before each answer."""
    scores.well(scene, "latency")
    before_s = scene.needs("answer times", lambda: scene.value(P95), 60)
    orders = pending(scene)
    with Fault("takes 50 ms more to answer", serves("slow")).during(scene):
        slow_s = scene.expect(
            "answers that take 40 ms more", lambda: (v := scene.value(P95)) and v > before_s + 0.04 and v, 60
        )
        tell_log(scene, orders)
        scene.says(f"time to first byte, p95: {before_s * 1e3:.1f} ms before, {slow_s * 1e3:.1f} ms now")
        scene.must(slow_s - before_s > 0.04, f"{(slow_s - before_s) * 1e3:.0f} ms more")
        scores.falls(scene, "latency", 0.7)
    scene.expect("the old answer times", lambda: (v := scene.value(P95)) and v < (before_s + slow_s) / 2, 60)
    scene.must(True, "the fault is taken away: answers are as quick as before")
    scores.recovers(scene, "latency")
    scene.see("kernob-dependency", service=SERVICE)


def run_loss(scene: Scene) -> None:
    """3 % of the packets to it get lost."""
    scores.well(scene, "packet_health", LOSS_SCORE)
    orders = pending(scene)
    bytes_sent = f'{CHOSEN},network_io_direction="transmit"'
    with Fault("loses 3 % of what is sent to it", packets("numgen random mod 1000 < 30 drop")).during(scene):

        def part() -> float | None:
            segments = scene.grown("kernob_flow_io_bytes_total", bytes_sent) / SEGMENT_BYTES
            resent = scene.grown("kernob_tcp_retransmits_total", CHOSEN)
            return resent / segments if segments >= LOSS_SEGMENTS and resent > LOSS_LEAST * segments else None

        found = scene.expect(f"{LOSS_LEAST:.0%} of the segments sent again", part, 60)
        tell_log(scene, orders)
        count = scene.expect("their number", lambda: scene.grown("kernob_tcp_retransmits_total", CHOSEN), 30)
        scene.says(f"{SERVICE} had to send {found:.1%} of its segments again, {count:.0f} so far")
        scene.must(found < LOSS_MOST, f"{found:.1%} of them, where 3 % get lost")
        scores.falls(scene, "packet_health", LOSS_SCORE)

    def calm() -> bool:
        sent = scene.value(f"sum(increase(kernob_flow_io_bytes_total{{{bytes_sent}}}[10s]))") or 0.0
        again = scene.value(f"sum(increase(kernob_tcp_retransmits_total{{{CHOSEN}}}[10s]))") or 0.0
        return sent > 0 and again <= LOSS_REST * sent / SEGMENT_BYTES

    scene.expect("the end of it", calm, 90)
    scene.must(True, f"the fault is taken away: less than {LOSS_REST:.1%} is sent twice")
    scores.recovers(scene, "packet_health", LOSS_SCORE)
    scene.see("kernob-dependency", service=SERVICE)


def run_silent(scene: Scene) -> None:
    """It takes requests and answers nothing at all."""
    scores.well(scene, "responsiveness")
    orders = pending(scene)
    selector = f'kernob_service="{SERVICE}",server_address="{PAYMENTS_NAME}"'
    with Fault("takes requests and answers nothing", serves("silent")).during(scene):

        def enough() -> float | None:
            grown = scene.grown("kernob_wait_timeouts_total", selector)
            return grown if grown >= SILENT_LEAST else None

        waits = scene.expect(f"{SILENT_LEAST} waits that ran out", enough, 60)
        tell_log(scene, orders)
        scene.says(f"{SERVICE} waited {waits:.0f} times for {PAYMENTS_NAME} until its own limit, for nothing")
        scores.falls(scene, "responsiveness", 0.7)
    recovers(scene, "kernob_wait_timeouts_total", selector)
    scores.recovers(scene, "responsiveness")
    scene.see("kernob-dependency", service=SERVICE)


CONNECTIONS, DROPS = "kernob_tcp_connections_total", "kernob_tcp_drops_total"
STORIES = (
    counted(
        "refuses",
        "A dependency refuses connections",
        Fault("refuses connections", packets("reject with tcp reset")),
        Count(CONNECTIONS, "refused", 5, "connect_failed", "refused connections", "reliability"),
    ),
    counted(
        "blackhole",
        "A dependency swallows connections",
        Fault("swallows SYNs", packets("tcp flags syn drop")),
        Count(CONNECTIONS, "timed_out", 3, "connect_failed", "connections that timed out", "reliability"),
    ),
    counted(
        "resets",
        "A dependency resets in the middle of its answers",
        Fault("sends half an answer, then RST", serves("reset")),
        Count(DROPS, "reset_mid_response", 5, "drop", "answers cut off by a RST", "stability"),
    ),
    counted(
        "stalls",
        "A dependency stops in the middle of its answers",
        Fault("sends half an answer, then nothing", serves("stalled")),
        Count(DROPS, "stalled_mid_response", 3, "drop", "answers that stopped half-way", "stability"),
    ),
    Story("silent", "A dependency falls silent", run_silent, PAYMENTS),
    Story("slow", "A dependency gets slow", run_slow, PAYMENTS),
    Story("loss", "Packets to a dependency get lost", run_loss, PAYMENTS),
)
