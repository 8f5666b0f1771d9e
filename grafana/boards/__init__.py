# SPDX-License-Identifier: Apache-2.0
"""The dashboards, one module each, with a function `board()`. `BOARDS` is the only registry."""

from __future__ import annotations

from collections.abc import Callable

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.boards import bandwidth, dependency, host, kernob_self, lifecycle, service_map, tcp_health, time

BOARDS: tuple[Callable[[], Dashboard], ...] = (
    bandwidth.board,
    host.board,
    kernob_self.board,
    service_map.board,
    tcp_health.board,
    time.board,
    dependency.board,
    lifecycle.board,
)
