# SPDX-License-Identifier: Apache-2.0
"""What Kernob adds to a short connection: connect, 100 bytes each way, close.

Run as `python -m benchmarks.connection`. Two tables: time in the programs by hook, by the kernel's own
account; then CPU and wall time of the workload without any program, with empty ones and with Kernob's on the
same hooks. There the programs stay loaded and are only attached and detached, so that rounds are short and
many: what else the machine does cancels within a round.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from benchmarks import cases
from benchmarks.attached import EMPTY, RETURN_0, kernob, rounds
from benchmarks.table import median, progress, show, spread
from benchmarks.workload import Result, Workloads
from kernob.errors import KernelError, KernobError
from kernob.kernel import programs
from kernob.kernel.attach import Attachment, Loader
from kernob.kernel.btf import Btf
from kernob.kernel.compiler import CompiledObject, ProgramCode
from kernob.kernel.programs import Program
from kernob.probes import PROBES

CONNECTIONS = tuple(probe for probe in PROBES if probe.name in ("tcp", "traffic", "process"))
_ROUNDS = 5
_PAIRS = 60
_SAMPLE = cases.connections(1000, 1)


class _Kept(Loader):
    """Hands out programs that are loaded already; whoever closes one closes a copy of the descriptor."""

    def __init__(self, btf: Btf, loaded: Mapping[str, int] | None) -> None:
        super().__init__(CompiledObject({}, {}), {}, btf)
        self._loaded = loaded
        self._empty: dict[tuple[str, int], int] = {}

    def load(self, name: str, program_type: int, attach_type: int = 0, btf_id: int = 0) -> Program:
        """As Loader.load. Without programs: one that returns at once."""
        if self._loaded is not None:
            return Program(name, os.dup(self._loaded[name]))
        key = name, btf_id
        if key not in self._empty:
            code = ProgramCode(name, RETURN_0, ())
            self._empty[key] = programs.load(code, {}, program_type, attach_type, btf_id).fd
        return Program(name, os.dup(self._empty[key]))


def _loaded() -> tuple[dict[str, int], list[Attachment]]:
    """Descriptors of Kernob's programs by name, and where each belongs. Nothing is attached any more."""
    with kernob(stats=False, probes=CONNECTIONS) as session:
        found = {link.program.name: os.dup(link.program.fd) for link in session.links}
        there = {(link.target, link.program.name) for link in session.links}
    every = [
        a for probe in CONNECTIONS for hook in probe.hooks for c in hook.candidates for a in c.attachments
    ]
    return found, [a for a in dict.fromkeys(every) if (a.target, a.program) in there and a.kind != "iter"]


@contextlib.contextmanager
def _attached(loader: Loader, attachments: Sequence[Attachment]) -> Iterator[None]:
    with ExitStack() as stack:
        for attachment in attachments:
            link = attachment.attach(loader)
            if link:
                stack.callback(link.close)
        yield


def in_bpf(workloads: Workloads) -> None:
    """Prints the time in programs: those of connections alone, then all that the agent has by default."""
    rows = []
    for who, probes in (("connections", CONNECTIONS), ("all probes", PROBES)):
        progress(who)
        found = rounds(
            {"Kernob": partial(kernob, probes=probes)}, cases.CONNECTION.on(workloads), _ROUNDS, probes=probes
        )
        empty, samples = found[EMPTY], found["Kernob"]
        rows.append([who, "empty (gross)", "", "", spread([s.each_us for s in empty], 2)])
        for hook in samples[0].hooks:
            runs = median([s.hooks[hook][0] / s.operations for s in samples])
            if runs >= 0.5:
                net = [s.net_ns(hook) / max(1, s.hooks[hook][0]) for s in samples]
                each = [s.net_ns(hook) / s.operations / 1e3 for s in samples]
                rows.append([who, hook, f"{runs:.1f}", spread(net), spread(each, 2)])
        rows.append([who, "together", "", "", spread([s.each_us for s in samples], 2)])
    show(
        "In BPF, a short connection",
        ("probes", "hook", "runs", "ns a run", "us a connection"),
        rows,
        "Net of empty programs on the same hooks. Both ends are on this host. Median (middle half).",
    )


def timed(workloads: Workloads) -> None:
    """Prints CPU and wall time, paired."""
    loaded, attachments = _loaded()
    btf = Btf.load()
    ours, empty = _Kept(btf, loaded), _Kept(btf, None)
    arms: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "none": contextlib.nullcontext,
        "empty": partial(_attached, empty, attachments),
        "Kernob": partial(_attached, ours, attachments),
        "none again": contextlib.nullcontext,
    }
    found: dict[str, list[Result]] = {arm: [] for arm in arms}
    for i in range(_PAIRS):
        progress(f"pair {i + 1} of {_PAIRS}")
        for arm in arms if i % 2 else reversed(arms):
            with arms[arm]():
                found[arm].append(_SAMPLE(workloads))
    rows = []
    for figure in ("cpu_each_ns", "wall_each_ns"):
        values = {arm: [float(getattr(r, figure)) for r in results] for arm, results in found.items()}
        base = [(a + b) / 2 for a, b in zip(values["none"], values["none again"], strict=True)]
        noise = [b - a for a, b in zip(values["none"], values["none again"], strict=True)]
        rows.append(
            [
                figure.partition("_")[0],
                f"{median(base):.0f}",
                spread(noise),
                *(
                    spread([v - b for v, b in zip(values[arm], base, strict=True)])
                    for arm in ("empty", "Kernob")
                ),
                spread([k - e for k, e in zip(values["Kernob"], values["empty"], strict=True)]),
            ]
        )
    show(
        "A short connection, ns",
        ("time", "none", "none - none", "empty - none", "Kernob - none", "Kernob - empty"),
        rows,
        f"{_PAIRS} rounds of none, empty, Kernob, none, every other one backwards; 1,000 connections each. "
        "Medians of the differences within a round (middle half).",
    )


def main() -> None:
    """Runs both."""
    with Workloads() as workloads:
        in_bpf(workloads)
        timed(workloads)


if __name__ == "__main__":
    try:
        main()
    except (KernobError, KernelError) as error:
        sys.exit(f"benchmarks: {error}")
