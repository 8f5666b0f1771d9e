# SPDX-License-Identifier: Apache-2.0
"""What was built once is kept under the key of all it was made from.

Enters: a name, a key, a function that fills a directory. Leaves: the path of the complete directory.
Called by image.py. An entry becomes visible by one rename, so an interrupted build is never mistaken for a
finished one; a lock per name keeps two runs from building the same thing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

GENERATIONS = 2  # complete entries kept per name: the current one, and one that a run may still be using


def default_root() -> Path:
    """Say where the cache lives: KERNOB_LANE_CACHE, or kernob-lanes in the user's cache directory."""
    chosen = os.environ.get("KERNOB_LANE_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kernob-lanes"


def content_key(parts: Iterable[bytes | str]) -> str:
    """Return 12 hex digits that change when any part, or the border between two parts, changes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:12]


class Cache:
    """A directory of complete entries `name-key`, and of scratch space that survives interruptions."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self._root = root
        self._say = say
        (root / "locks").mkdir(parents=True, exist_ok=True)

    def scratch(self, name: str) -> Path:
        """Return a directory that is kept between builds: downloads, a tool's own cache, logs."""
        path = self._root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def entry(self, name: str, key: str, build: Callable[[Path], None], *, refresh: bool = False) -> Path:
        """Return the entry's directory, built now if it is not there yet.

        `build` gets an empty directory beside the final place; whatever it raises leaves no entry behind.
        """
        final = self._root / f"{name}-{key}"
        if final.is_dir() and not refresh:
            os.utime(final)
            return final
        with self._locked(name):
            if final.is_dir() and not refresh:  # somebody else built it while this run waited
                return final
            self._prune(name)
            building = self._root / f"{name}-{key}.building"
            building.mkdir()
            build(building)
            if final.exists():
                final.rename(self._root / f"{name}-{key}.old")
            building.rename(final)
            self._prune(name)
        return final

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._root / "locks" / name).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"another run is building {name}; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _prune(self, name: str) -> None:
        """Remove what interrupted builds left, and all but the latest entries; the lock is held."""
        digits = "[0-9a-f]" * 12
        for leftover in (*self._root.glob(f"{name}-*.building"), *self._root.glob(f"{name}-*.old")):
            remove_tree(leftover)
        entries = sorted(self._root.glob(f"{name}-{digits}"), key=lambda path: path.stat().st_mtime_ns)
        for stale in entries[:-GENERATIONS]:
            remove_tree(stale)


def remove_tree(path: Path, mounts: str | None = None) -> None:
    """Delete a directory if it exists, but never through something that is still mounted below it.

    `mounts` is the text of proc_pid_mountinfo(5), this process's by default.
    """
    if not path.exists():
        return
    inside = f" {path.resolve()}/"
    for line in (mounts or Path("/proc/self/mountinfo").read_text()).splitlines():
        if inside in line:
            raise LaneError(f"{path} still has something mounted in it; unmount that first: {line}")
    shutil.rmtree(path)
