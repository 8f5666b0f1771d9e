# SPDX-License-Identifier: Apache-2.0
"""The commands. COMMANDS is the only registry: adding one is a module here, a line below.

Everything but click is imported by the command that needs it: `kernob top --help` loads neither gRPC nor
numpy, and a client of a running agent never loads what only the agent needs.
"""

from __future__ import annotations

import click

from kernob.commands.doctor import config, doctor, health
from kernob.commands.events import events
from kernob.commands.lifecycle import lifecycle
from kernob.commands.map import destinations, map_
from kernob.commands.network import network
from kernob.commands.run import run
from kernob.commands.scores import score, scores
from kernob.commands.syscalls import blocked, syscalls
from kernob.commands.top import top

COMMANDS: tuple[click.Command, ...] = (
    run,
    top,
    events,
    lifecycle,
    scores,
    score,
    map_,
    destinations,
    syscalls,
    blocked,
    doctor,
    network,
    health,
    config,
)
