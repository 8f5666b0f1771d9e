# SPDX-License-Identifier: Apache-2.0
"""BPF maps: creation, and batch reads straight into numpy records.

In: MapSpec of `compiler`. Out: arrays of keys and values. Called by `session` and the probes. BCC's
per-item iteration costs 3 us an entry; a batch read costs 0.1 us.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.errors import MapError
from kernob.kernel import syscall
from kernob.kernel.compiler import RING_BUFFER, MapSpec
from kernob.kernel.ringbuf import fitting_bytes

HASH, ARRAY, PERCPU_ARRAY, ARRAY_OF_MAPS = 1, 2, 6, 12
_NO_PREALLOC, _MMAPABLE = 1, 1 << 10
_MAPPED_FROM = 1 << 16
"""Bytes from which an array is read through a mapping: 0.2 ms for a MiB, where a batch takes 8."""
_ANY, _NOEXIST = 0, 1
_FIRST_CHUNK = 1024


class BpfMap:
    """One map, owned by this object: closing the descriptor frees it once no program refers to it."""

    def __init__(self, spec: MapSpec, max_entries: int | None = None, inner: BpfMap | None = None) -> None:
        """Creates the map with `max_entries` (default: as declared). Raises MapError.

        A ring buffer's entries are bytes; they become a power of two.
        """
        self.spec = spec
        self.max_entries = max_entries or spec.max_entries
        if spec.type == RING_BUFFER:
            self.max_entries = fitting_bytes(self.max_entries)
        self.fd: int = -1
        self._memory: mmap.mmap | None = None
        self._expected = _FIRST_CHUNK
        if spec.type == ARRAY and spec.value_size % 8 == 0 and self._size >= _MAPPED_FROM:
            with contextlib.suppress(OSError):  # before Linux 5.5; read like others then
                self.fd = self._create(_MMAPABLE, 0)
                self._memory = mmap.mmap(self.fd, self._size, mmap.MAP_SHARED, mmap.PROT_READ)
        if self.fd >= 0:
            return
        flags = _NO_PREALLOC if spec.type == HASH and _memory_on_demand() else 0
        try:
            self.fd = self._create(flags, inner.fd if inner else 0)
        except OSError as error:
            raise MapError(f"map {spec.name} of {self.max_entries} entries: {error.strerror}") from error

    @property
    def _size(self) -> int:
        return self.max_entries * self.spec.value_size

    def _create(self, flags: int, inner: int) -> int:
        spec = self.spec
        sizes = (spec.key_size, spec.value_size, self.max_entries)
        name = spec.name[:15].encode()
        attr = struct.pack("=IIIIIII16s", spec.type, *sizes, flags, inner, 0, name)
        return syscall.bpf(syscall.MAP_CREATE, attr)

    def close(self) -> None:
        """Drops our reference; safe to call twice."""
        if self._memory:
            self._memory.close()
            self._memory = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All entries as (keys, values). Entries that come or go meanwhile may be in or not."""
        if self._memory:
            values = np.frombuffer(self._memory, self.spec.value, self.max_entries).copy()
            return np.arange(self.max_entries, dtype=self.spec.key), values
        return self._batch(syscall.MAP_LOOKUP_BATCH)

    def drain(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Reads and removes all entries. Only for maps that no program updates any more."""
        return self._batch(syscall.MAP_LOOKUP_AND_DELETE_BATCH)

    def _batch(self, command: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """BPF_MAP_LOOKUP[_AND_DELETE]_BATCH until the kernel says ENOENT (map walked through)."""
        key_type, value_type = self.spec.key, self.spec.value
        room = self._expected
        keys, values = np.empty(room, key_type), np.empty(room, value_type)
        # a hash map's cursor is a u32 bucket number, an array's a key: 16 bytes hold either
        cursor = ctypes.create_string_buffer(max(16, self.spec.key_size))
        cursor_at, filled, started = syscall.pointer(cursor), 0, False
        while True:
            attr = ctypes.create_string_buffer(
                struct.pack(
                    "=QQQQIIQQ",
                    cursor_at if started else 0,
                    cursor_at,
                    keys.ctypes.data + filled * key_type.itemsize,
                    values.ctypes.data + filled * value_type.itemsize,
                    room - filled,
                    self.fd,
                    0,
                    0,
                ),
                56,
            )
            code = 0
            try:
                syscall.bpf_in_place(command, attr)
            except OSError as error:
                code = error.errno or 0
                if code not in (errno.ENOENT, errno.ENOSPC, errno.EINTR):
                    raise MapError(f"map {self.spec.name}: batch read: {error.strerror}") from error
            if code != errno.ENOSPC:  # a full bucket did not fit: nothing was copied, cursor stays
                filled += struct.unpack_from("=I", attr.raw, 32)[0]
                started = True
            if code == errno.ENOENT:
                break
            room *= 2
            keys, values = _grown(keys, room, filled), _grown(values, room, filled)
        self._expected = max(_FIRST_CHUNK, filled + filled // 4 + 64)
        return keys[:filled], values[:filled]

    def lookup(self, key: int | bytes) -> NDArray[Any] | None:
        """One value as an array of one record, or None."""
        value = np.zeros(1, self.spec.value)
        key_buffer = ctypes.create_string_buffer(self._key(key), self.spec.key_size)
        try:
            syscall.bpf(syscall.MAP_LOOKUP_ELEM, self._element(key_buffer, value.ctypes.data, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise MapError(f"map {self.spec.name}: lookup: {error.strerror}") from error
        return value

    def update(self, key: int | bytes, value: int | bytes, only_new: bool = False) -> bool:
        """Sets one entry; False when `only_new` and it is there already."""
        key_buffer = ctypes.create_string_buffer(self._key(key), self.spec.key_size)
        raw = value if isinstance(value, bytes) else value.to_bytes(self.spec.value_size, "little")
        value_buffer = ctypes.create_string_buffer(raw, self.spec.value_size)
        flags = _NOEXIST if only_new else _ANY
        try:
            syscall.bpf(
                syscall.MAP_UPDATE_ELEM, self._element(key_buffer, syscall.pointer(value_buffer), flags)
            )
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise MapError(f"map {self.spec.name}: update: {error.strerror}") from error
        return True

    def delete(self, key: int | bytes) -> bool:
        """Removes one entry; False where there was none."""
        key_buffer = ctypes.create_string_buffer(self._key(key), self.spec.key_size)
        try:
            syscall.bpf(syscall.MAP_DELETE_ELEM, self._element(key_buffer, 0, 0))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise MapError(f"map {self.spec.name}: delete: {error.strerror}") from error
            return False
        return True

    def memory_bytes(self) -> int:
        """What the kernel says the map occupies (fdinfo memlock; exact from Linux 6.4 on)."""
        for line in Path(f"/proc/self/fdinfo/{self.fd}").read_text(encoding="ascii").splitlines():
            if line.startswith("memlock:"):
                return int(line.split()[1])
        return 0

    def _key(self, key: int | bytes) -> bytes:
        return key if isinstance(key, bytes) else key.to_bytes(self.spec.key_size, "little")

    def _element(self, key: ctypes.Array[ctypes.c_char], value: int, flags: int) -> bytes:
        return struct.pack("=IIQQQ", self.fd, 0, syscall.pointer(key), value, flags)


class SwappedMap:
    """Two like maps behind an array of maps: programs fill one while the other is drained.

    Replacing the array's element waits for every program that may still use the old map
    (maybe_wait_bpf_programs, Linux 4.20), so a drain sees each update once and loses none.
    """

    def __init__(self, outer: MapSpec, inner: MapSpec, max_entries: int | None = None) -> None:
        self._idle = BpfMap(inner, max_entries)
        self.active = BpfMap(inner, max_entries)
        self.outer = BpfMap(outer, inner=self.active)
        self.outer.update(0, self.active.fd)

    def drain(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Everything added since the last drain, as (keys, values)."""
        self.active, self._idle = self._idle, self.active
        self.outer.update(0, self.active.fd)
        return self._idle.drain()

    @property
    def inner(self) -> BpfMap:
        """One of the two, for its size and type."""
        return self._idle

    def memory_bytes(self) -> int:
        """Both maps together."""
        return self._idle.memory_bytes() + self.active.memory_bytes()

    def close(self) -> None:
        """Drops all three maps."""
        for each in (self.outer, self.active, self._idle):
            each.close()


def _grown(array: NDArray[Any], room: int, filled: int) -> NDArray[Any]:
    larger = np.empty(room, array.dtype)
    larger[:filled] = array[:filled]
    return larger


def _memory_on_demand() -> bool:
    """Whether tracing programs may allocate hash entries as they come (bpf_mem_alloc, Linux 6.1)."""
    major, minor = os.uname().release.split(".")[:2]
    digits = "".join(c for c in minor if c.isdigit())
    return (int(major), int(digits or 0)) >= (6, 1)
