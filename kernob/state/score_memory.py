# SPDX-License-Identifier: Apache-2.0
"""Windows of scores across restarts: written each minute as a whole, read at the start.

In: `Dependencies`, times. Out: one row in the store, JSON beside numpy arrays that hold what is not zero.
What has left the window since is left out; what is usual has decayed. Called by `features.scores`, in the
tick thread; packing and writing happen in the store's.
"""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernob.errors import StoreError
from kernob.model import Dependency
from kernob.state.dependencies import Dependencies
from kernob.state.history import opened
from kernob.state.store import FILE_NAME, Store

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
_FORMAT: Final = 1
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept. `facts`: JSON; `arrays`: by name, see `ScoreWindows.dump`."""

    written_unix_ns: int
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def packed(self) -> bytes:
        """As bytes."""
        out = io.BytesIO()
        facts = np.frombuffer(json.dumps(self.facts).encode(), np.uint8)
        arrays: dict[str, Any] = {"facts": facts, **self.arrays}
        np.savez_compressed(out, **arrays)
        return out.getvalue()


def unpacked(content: bytes, written_unix_ns: int) -> Memory:
    """The reverse. Raises ValueError for what was not written by us."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(each.file_size for each in archive.infolist()) > _MOST_BYTES:
                raise ValueError("too large")
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}")
    except (OSError, KeyError, TypeError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return Memory(written_unix_ns, facts, arrays)


def dump(dependencies: Dependencies, now_unix_ns: int) -> Memory:
    """Everything that scores rest on, as it is now."""
    names = [dependencies.name(row) for row in range(len(dependencies))]
    arrays, reasons = dependencies.windows.dump(len(names))
    rules = dependencies.rules
    facts = {
        "format": _FORMAT,
        "rules": [rules.bucket_s, rules.buckets, rules.half_life_s],
        "names": [None if name is None else [name.service, name.address, name.port] for name in names],
        "reasons": reasons,
    }
    failed = dependencies.failed_unix_ns[: len(names)].copy()
    return Memory(now_unix_ns, facts, {**arrays, "failed": failed})


def load(dependencies: Dependencies, memory: Memory, now_s: float, now_unix_ns: int) -> int:
    """Takes what was kept into empty dependencies; how many. Raises ValueError, IndexError for nonsense."""
    rules, facts = dependencies.rules, memory.facts
    away_s = max(0.0, (now_unix_ns - memory.written_unix_ns) / 1e9)
    dependencies.windows.advance(now_s)
    rows = np.array(
        [-1 if name is None else dependencies.admit(Dependency(*name)) for name in facts["names"]], np.int64
    )
    arrays = memory.arrays
    if len(arrays["failed"]) != len(rows):
        raise ValueError("rows and names do not fit")
    kept = rows >= 0
    dependencies.failed_unix_ns[rows[kept]] = arrays["failed"][kept]
    same = facts["rules"] == [rules.bucket_s, rules.buckets, rules.half_life_s]
    dependencies.windows.load(arrays, facts["reasons"], rows, away_s, window=same)
    return int(kept.sum())


class ScoreMemory:
    """One for the life of the agent; `store` is None where nothing is kept."""

    def __init__(self, directory: Path, store: Store | None, dependencies: Dependencies) -> None:
        self._directory = directory
        self._store = store
        self._dependencies = dependencies
        self._due_s = 0.0
        self._waits = False

    def restore(self, now_s: float, now_unix_ns: int) -> None:
        """Takes what an earlier life stored; nothing where there is none, or it cannot be read."""
        self._due_s = now_s + EVERY_S
        if self._store is None:
            return
        try:
            memory = read(self._directory)
            if memory is not None:
                count = load(self._dependencies, memory, now_s, now_unix_ns)
                log.info("scores of %d dependencies go on", count)
        except (StoreError, ValueError, IndexError, KeyError, TypeError) as error:
            log.warning("scores begin anew: %s", error)

    def keep(self, now_s: float, now_unix_ns: int, *, at_once: bool = False) -> None:
        """Once a minute, hands all of it over, unless what was handed over before still waits."""
        store = self._store
        if store is None or self._waits or store.problem or (now_s < self._due_s and not at_once):
            return
        self._due_s = now_s + EVERY_S
        self._waits = True
        memory = dump(self._dependencies, now_unix_ns)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (1, ?, ?)", (memory.written_unix_ns, memory.packed())
            )
            self._waits = False

        store.stage(write)


def read(directory: Path) -> Memory | None:
    """What was kept last; None where nothing was. Raises StoreError, ValueError."""
    if not directory.joinpath(FILE_NAME).exists():
        return None
    with opened(directory) as connection:
        (known,) = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'scores'"
        ).fetchone()
        row = connection.execute("SELECT written_unix_ns, content FROM scores").fetchone() if known else None
    return unpacked(bytes(row[1]), int(row[0])) if row else None
