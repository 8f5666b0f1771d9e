# SPDX-License-Identifier: Apache-2.0
"""Kernel file systems that nobody mounted, mounted where nobody else sees them.

In: a file system type. Out: a directory that lives as long as its `PrivateMount`, at the latest until
this process ends, however it ends. Called by `tracefs` and `capabilities`. The mount is attached to no
directory (fsmount(2), Linux 5.2), so neither the host's nor a container's mounts change.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType

# the same numbers on every architecture (include/uapi/asm-generic/unistd.h)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1  # of fsopen and of fsmount
_CMD_CREATE = 6
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class PrivateMount:
    """One mounted file system of a type without options, at `path`. Raises OSError where it may not be."""

    def __init__(self, kind: str) -> None:
        context = _call(_FSOPEN, kind.encode(), _CLOEXEC)
        try:
            _call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
            self._fd = _call(_FSMOUNT, context, _CLOEXEC, _NOSUID_NODEV_NOEXEC)
        finally:
            os.close(context)
        self.path = Path(f"/proc/self/fd/{self._fd}")

    def close(self) -> None:
        """Unmounts; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PrivateMount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def may_mount(kind: str) -> bool:
    """Whether this process may mount such a file system; tried, and taken away again."""
    try:
        PrivateMount(kind).close()
    except OSError:
        return False
    return True


def _call(number: int, *arguments: bytes | int | None) -> int:
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
