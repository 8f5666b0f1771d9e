# SPDX-License-Identifier: Apache-2.0
"""What a probe is: its C files, the hooks it asks for, what it cannot see.

Constructed by each module of this package, collected in `kernob.probes.PROBES`, read by
`kernel.session` (to compile and attach) and by `doctor` (blind spots).
"""

from __future__ import annotations

from dataclasses import dataclass

from kernob.kernel.attach import Hook


@dataclass(frozen=True, slots=True)
class Probe:
    """One subject of observation. `hooks` are attached in order and detached in reverse."""

    name: str
    sources: tuple[str, ...]
    hooks: tuple[Hook, ...]
    blind_spots: tuple[str, ...] = ()
