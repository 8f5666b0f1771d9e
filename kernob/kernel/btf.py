# SPDX-License-Identifier: Apache-2.0
"""A reader of BTF, the kernel's own type information (Documentation/bpf/btf.rst).

In: /sys/kernel/btf/vmlinux or a file of the same form. Out: byte offsets of struct members, enum
values, type ids, function names. Called by `offsets` and `programs`. Only an index is built (0.1 s
for a whole kernel); nothing is kept in memory but the blob, until it is closed.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import numpy as np

from kernob.errors import BtfError

_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _TYPEDEF, _FUNC = 4, 5, 6, 8, 12
_MODIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag
_MODIFIERS_IN_A_ROW = 64
_NAMED = {_STRUCT, _UNION, _ENUM, _TYPEDEF, _FUNC}
# kind -> (fixed bytes, bytes per element) behind the 12-byte header of a type
_TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12)}
_TAIL |= {17: (4, 0), 19: (0, 12)}

VMLINUX = Path("/sys/kernel/btf/vmlinux")


class Btf:
    """Index over one BTF blob. Raises BtfError for anything that is not well-formed BTF."""

    def __init__(self, blob: bytes, origin: str) -> None:
        self._blob = blob
        self._origin = origin
        try:
            magic, _version, _flags, header_len, type_off, type_len, str_off, str_len = struct.unpack_from(
                "<HBBIIIII", blob
            )
            if magic != _MAGIC:
                raise BtfError(f"{origin}: not BTF (magic {magic:#x}, expected {_MAGIC:#x})")
            self._strings = header_len + str_off
            if self._strings + str_len > len(blob):
                raise BtfError(f"{origin}: truncated BTF")
            self._index(header_len + type_off, header_len + type_off + type_len)
        except (struct.error, ValueError, KeyError) as error:
            raise BtfError(f"{origin}: malformed BTF ({error})") from error

    @classmethod
    def load(cls, path: Path = VMLINUX) -> Btf:
        """Reads a BTF file; BtfError with a clear line when it is absent or unreadable."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise BtfError(f"no BTF at {path}: {error.strerror}") from error

    def _index(self, position: int, end: int) -> None:
        # 8 bytes a type; a dictionary of all names would take 20 MiB and leave its fragments behind
        positions, names = array("I", [0]), array("I", [0])
        header = struct.Struct("<III").unpack_from
        while position < end:
            name, info, _size = header(self._blob, position)
            kind, count = (info >> 24) & 0x1F, info & 0xFFFF
            positions.append(position)
            names.append(name if kind in _NAMED else 0)
            fixed, each = _TAIL.get(kind, (0, 0))
            position += 12 + fixed + each * count
        self._positions = positions
        self._names = np.frombuffer(names, np.uint32)
        self._found: dict[tuple[int, str], int | None] = {}

    def _find(self, kind: int, name: str) -> int | None:
        """Id of the first type of this kind and name, or None."""
        if (kind, name) not in self._found:
            self._found[kind, name] = self._search(kind, name.encode("ascii") + b"\0")
        return self._found[kind, name]

    def _search(self, kind: int, wanted: bytes) -> int | None:
        # a name may also stand at the end of a longer one, if the producer merged them
        offsets, at = [], self._blob.find(wanted, self._strings + 1)
        while at >= 0:
            offsets.append(at - self._strings)
            at = self._blob.find(wanted, at + 1)
        for type_id in np.flatnonzero(np.isin(self._names, offsets)).tolist():
            if self._type(type_id)[1] == kind:
                return int(type_id)
        return None

    def _type(self, type_id: int) -> tuple[int, int, int, bool, int]:
        position = self._positions[type_id]
        _name, info, size = struct.unpack_from("<III", self._blob, position)
        return position, (info >> 24) & 0x1F, info & 0xFFFF, bool(info >> 31), size

    def _resolve(self, type_id: int) -> int:
        for _ in range(_MODIFIERS_IN_A_ROW):
            _, kind, _, _, target = self._type(type_id)
            if kind not in _MODIFIERS:
                return type_id
            type_id = target
        raise ValueError(f"type {type_id} has no end")

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._blob[start : self._blob.index(b"\0", start)].decode("ascii", "replace")

    def _member(self, type_id: int, wanted: str) -> tuple[int, int] | None:
        """(bit offset, type id) of a member, looking through anonymous structs and unions."""
        position, kind, count, bitfields, _ = self._type(type_id)
        if kind not in (_STRUCT, _UNION):
            return None
        for i in range(count):
            name, member_type, offset = struct.unpack_from("<III", self._blob, position + 12 + 12 * i)
            bits = offset & 0xFFFFFF if bitfields else offset
            if self._string(name) == wanted:
                return bits, member_type
            if name == 0:
                inner = self._member(self._resolve(member_type), wanted)
                if inner:
                    return bits + inner[0], inner[1]
        return None

    def offset(self, path: str) -> int:
        """Byte offset of `struct.member.member...`, e.g. "sock.__sk_common.skc_family".

        Raises BtfError naming the struct and the member that is missing.
        """
        struct_name, *members = path.split(".")
        type_id = self._find(_STRUCT, struct_name)
        if type_id is None:
            raise BtfError(f"{self._origin}: no struct {struct_name}")
        bits = 0
        for member in members:
            try:
                found = self._member(self._resolve(type_id), member)
            except (struct.error, ValueError, IndexError, RecursionError) as error:
                raise BtfError(f"{self._origin}: malformed BTF of struct {struct_name} ({error})") from error
            if found is None:
                raise BtfError(f"{self._origin}: struct {struct_name} has no member {member} ({path})")
            bits += found[0]
            type_id = found[1]
        return bits // 8

    def enum_value(self, enum: str, member: str) -> int | None:
        """Value of an enumerator, or None where this kernel lacks it."""
        type_id = self._find(_ENUM, enum)
        if type_id is None:
            return None
        position, _, count, _, _ = self._type(type_id)
        for i in range(count):
            name, value = struct.unpack_from("<Ii", self._blob, position + 12 + 8 * i)
            if self._string(name) == member:
                return int(value)
        return None

    def function_id(self, name: str) -> int | None:
        """Type id of a kernel function, or None: what fentry and fexit programs attach to."""
        return self._find(_FUNC, name)

    def tracepoint_id(self, name: str) -> int | None:
        """Type id of `btf_trace_<name>`, what tp_btf programs attach to, or None."""
        return self._find(_TYPEDEF, f"btf_trace_{name}")
