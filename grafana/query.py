# SPDX-License-Identifier: Apache-2.0
"""The pieces queries are made of: MetricsQL text, with Grafana's variables left in it.

In: metric names and labels as VictoriaMetrics gives them (dots become underscores, units are added). Out:
expressions. Called by `boards`. What is the same in every panel is decided here:

- Counters are read by their increase over a window divided by its length, never by rate(): VictoriaMetrics'
  rate() divides by the time between the samples it finds, which shows the bytes of a process that lived for
  ten seconds as a rate that lasts for two minutes.
- The window is `$__rate_interval` of a query with the step `STEP`: four steps, so never below two minutes,
  which is two re-send intervals of the agent; and at least as long as a pixel, so that no byte is skipped.
- process.network.io, kernob.flow.io and kernob.process.flow.io are three views of the same bytes. No
  expression adds two of them.
"""

from __future__ import annotations

STEP = "30s"
"""Smallest step of a range query; `$__rate_interval` is then at least 2m."""

WINDOW = "$__rate_interval"
NOW = "2m"
"""Window of what is true now: twice the agent's longest re-send interval."""

ALERTS_FIRING = 'count(ALERTS{alertstate="firing"}) or 0 * count(last_over_time(vmalert_iteration_total[2m]))'
"""How many alerts fire: 0 where vmalert evaluates its rules, nothing where it does not."""

HOST = 'host_name=~"$host"'
REMOTE_FLOW = 'kernob_peer_class!="localhost"'
LOOPBACK = "(::ffff:)?127[.].*|::1|localhost"
REMOTE_ADDRESS = f'server_address!~"{LOOPBACK}"'
"""kernob.process.flow.io has no peer class; what a server serves on loopback has a loopback address."""

VIRTUAL_DEVICES = (
    "lo|veth.*|docker.*|br-.*|virbr.*|cni.*|flannel.*|cali.*|vxlan.*|tun.*|tap.*|wg.*|ifb.*|dummy.*"
)
"""Devices whose bytes cross another one as well, or none."""

PROCESS = ("host_name", "kernob_service", "process_executable_name", "process_pid")
PROCESS_FLOW = (*PROCESS, "server_address", "server_port")


def select(metric: str, *matchers: str) -> str:
    """`metric` with matchers, empty ones left out.

    >>> select("up", 'job="x"', "", HOST)
    'up{job="x",host_name=~"$host"}'
    """
    inside = ",".join(matcher for matcher in matchers if matcher)
    return f"{metric}{{{inside}}}" if inside else metric


def flow(direction: str = "", *matchers: str) -> str:
    """kernob.flow.io of the chosen hosts, services and destinations; `direction` "" is both."""
    chosen = (HOST, 'kernob_service=~"$service"', 'server_address=~"$destination"')
    return select("kernob_flow_io_bytes_total", _direction(direction), *chosen, *matchers)


def process_flow(direction: str = "", *matchers: str) -> str:
    """kernob.process.flow.io of the chosen hosts, services and destinations, loopback left out."""
    chosen = (HOST, 'kernob_service=~"$service"', 'server_address=~"$destination"', REMOTE_ADDRESS)
    return select("kernob_process_flow_io_bytes_total", _direction(direction), *chosen, *matchers)


def interface(direction: str) -> str:
    """system.network.io of the chosen hosts and interfaces."""
    matchers = (HOST, 'device=~"$interface"', f'direction="{direction}"')
    return select("system_network_io_bytes_total", *matchers)


def _direction(direction: str) -> str:
    return f'network_io_direction="{direction}"' if direction else ""


def per_second(selector: str, by: tuple[str, ...] = (), window: str = WINDOW) -> str:
    """Growth a second of counters, summed `by` these labels, over `window`.

    >>> per_second("x_total", ("a", "b"), "2m")
    'sum by (a,b) (increase(x_total[2m])) / 2m'
    """
    return f"{total(selector, by, window)} / {window}"


def total(selector: str, by: tuple[str, ...] = (), window: str = "$__range") -> str:
    """Growth of counters, summed `by` these labels, over `window` (default: the range on the screen)."""
    labels = f" by ({','.join(by)})" if by else ""
    return f"sum{labels} (increase({selector}[{window}]))"


def top(count: int, expression: str, rest: str = "") -> str:
    """The `count` series with the largest area on the screen, and the sum of all others as one more.

    `rest` is the label that says so: "kernob_service=all others". Missing points count as 0, or a burst of
    seconds would outrank what ran for hours; where there is no series at all there is no result.

    >>> top(3, "q", "a=all others")
    'WITH (q = q) topk_avg(3, q default 0, "a=all others") if on() count(q)'
    """
    others = f', "{rest}"' if rest else ""
    return f"WITH (q = {expression}) topk_avg({count}, q default 0{others}) if on() count(q)"


def dashed(expression: str, *labels: str) -> str:
    """`expression`, a dash in these labels where a series lacks them: a column no row has is not shown.

    >>> dashed("q", "a")
    'label_replace(q, "a", "-", "a", "")'
    """
    for label in labels:
        expression = f'label_replace({expression}, "{label}", "-", "{label}", "")'
    return expression


def for_each(ranking: str, expression: str) -> str:
    """`expression` for what `ranking` lists and nothing else, 0 where it says nothing: no hole in a table.

    A query without any result would also change how Grafana names the values of the others.

    >>> for_each("topk(5, r)", "q")
    '(q and topk(5, r)) or 0 * topk(5, r)'
    """
    return f"({expression} and {ranking}) or 0 * {ranking}"
