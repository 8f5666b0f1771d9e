# SPDX-License-Identifier: Apache-2.0
"""Files of the host, read from wherever its root can be seen: below /proc/1/root, a mount, or here.

In: the root as this process sees it. Out: bytes and names. Called by `containers`. Symbolic links are
followed inside that root and never out of it (openat2(2), Linux 5.6): an absolute link on the host means
the host's directory, not the container's, and nothing there can lead elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 2, 16
_NAMES_MAX = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class HostRoot:
    """One way to the host's files. Keeps nothing open; every call finds the root anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Content of a regular file, named from the root, up to the limit. Raises OSError."""
        with self.opened(name, os.O_NONBLOCK) as descriptor:  # a FIFO would hold us up
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(22, "not a regular file", name)
            chunks = []
            while limit_bytes > 0 and (chunk := os.read(descriptor, min(limit_bytes, 1 << 16))):
                chunks.append(chunk)
                limit_bytes -= len(chunk)
            return b"".join(chunks)

    def names(self, directory: str) -> list[str]:
        """At most 4096 names in a directory, none where it cannot be read."""
        try:
            with self.opened(directory, os.O_DIRECTORY) as descriptor, os.scandir(descriptor) as entries:
                return [entry.name for entry, _ in zip(entries, range(_NAMES_MAX), strict=False)]
        except OSError:
            return []

    @contextlib.contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """A descriptor for reading, closed afterwards. Raises OSError."""
        root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = _open_in(root, name, flags | os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _open_in(root: int, name: str, flags: int) -> int:
    # struct open_how: flags, mode, resolve
    how = struct.pack("=QQQ", flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    buffer = ctypes.create_string_buffer(how, len(how))
    result = int(
        _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root),
            os.fsencode(name),
            buffer,
            ctypes.c_size_t(len(how)),
        )
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result
