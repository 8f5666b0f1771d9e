# SPDX-License-Identifier: Apache-2.0
"""The probes. PROBES is the only registry: adding one is a C file, a module here, a line below."""

from __future__ import annotations

from kernob.probes import lifecycle, process, tcp, traffic
from kernob.probes.probe import Probe

PROBES: tuple[Probe, ...] = (process.PROBE, traffic.PROBE, tcp.PROBE, lifecycle.PROBE)
