# SPDX-License-Identifier: Apache-2.0
"""Probe `process`: who is behind a PID, and when it ended.

Hooks: sched_process_exit. In: rows of the procs map, filled by traffic.bpf.c at a process's first
network call. Out: ProcessInfo. Called by `agent`.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.kernel.attach import RawTracepoint, TypedTracepoint, all_of, first_of
from kernob.model import ProcessInfo, ProcessKey
from kernob.probes.probe import Probe

PROBE = Probe(
    name="process",
    sources=("process.bpf.c",),
    hooks=(
        first_of(
            "process",
            "exit",
            all_of(TypedTracepoint("sched_process_exit", "tp_btf__exit")),
            all_of(RawTracepoint("sched_process_exit", "raw_tp__exit")),
            essential=False,
        ),
    ),
    blind_spots=(
        "a process that did network I/O, exec'ed and did none since keeps the older program's name in "
        "the live view until it ends",
    ),
)


ARGS_BYTES = 192
"""ARGS_LEN of bpf/types.h: where command lines are cut."""

_KEY = struct.Struct("<IIHxx")  # struct proc_key


def decode_key(key: np.void) -> ProcessKey:
    """Identity out of a record that has tgid, start and exec (proc_key, flow_key)."""
    return ProcessKey(int(key["tgid"]), int(key["start"]), int(key["exec"]))


def encode_key(key: ProcessKey) -> bytes:
    """struct proc_key of an identity, the key of the procs map."""
    return _KEY.pack(key.pid, key.start_ticks, key.exec_id)


def text(field: NDArray[Any]) -> bytes:
    """A C string out of a fixed array of characters."""
    return bytes(field.tobytes()).partition(b"\0")[0]


def ended_keys(keys: NDArray[Any], values: NDArray[Any]) -> list[ProcessKey]:
    """Identities in a reading of the procs map whose process has ended."""
    return [decode_key(key) for key in keys[values["exit_ns"] != 0]]


def decode(key: ProcessKey, row: np.void) -> tuple[ProcessInfo, bytes]:
    """ProcessInfo with raw names, and the raw command line; `state.names` makes them fit to show.

    `row` is one struct proc_val. The strings come from the process itself and may hold anything; the
    command line has its arguments ended by NUL and is cut at ARGS_LEN bytes.
    """
    arguments = bytes(row["args"].tobytes())[: int(row["args_len"])]
    levels = [text(row[f"cgroup{i}"]) for i in range(4)]
    cgroup = tuple(level.decode("utf-8", "surrogateescape") for level in reversed(levels) if level)
    comm = text(row["comm"])
    executable = text(row["exe"]) or comm
    info = ProcessInfo(
        key=key,
        executable=executable.decode("utf-8", "surrogateescape"),
        comm=comm.decode("utf-8", "surrogateescape"),
        cgroup=cgroup,
        netns=int(row["netns"]),
    )
    return info, arguments
