# SPDX-License-Identifier: Apache-2.0
"""The probes. PROBES is the only registry: adding one is a C file, a module here, a line below."""

from __future__ import annotations

from kernob.probes import lifecycle, names, process, syscalls, tcp, traffic, waits
from kernob.probes.probe import Probe

PROBES: tuple[Probe, ...] = (
    process.PROBE,
    traffic.PROBE,
    tcp.PROBE,
    waits.PROBE,
    syscalls.PROBE,
    names.PROBE,
    lifecycle.PROBE,
)
