# SPDX-License-Identifier: Apache-2.0
"""Where functions are in an ELF file, by its dynamic symbols. Called by `libraries`, once for each inode.

Any process may map a file of its own making under a C library's name, and have the tick thread read it. So
what is read is bounded, and nothing that the file says is followed in a loop: of the general libraries for
ELF, one walks chains of hashes that may be circles, and tables of 2**64 entries in a sparse file.
Format: gABI, "Object Files"; 64 bits, little-endian, as all machines are that Kernob runs on.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_LOADED, _DYNAMIC_SYMBOLS, _FUNCTION = 1, 11, 2
_SEGMENTS_MOST, _SECTIONS_MOST = 128, 4096
_TABLE_BYTES_MOST: Final = 8 << 20
"""Of the symbols, and of their names; glibc has 75 kB and 40 kB."""


class _Elf(NamedTuple):
    """What the header says: places and numbers of entries."""

    entry: int
    segments_at: int
    segments: int
    sections_at: int
    sections: int


class _Segment(NamedTuple):
    """A part of the file that is loaded: where it is, where it comes to be, how much of it there is."""

    offset: int
    address: int
    size: int


def function_offsets(fd: int, names: Sequence[str]) -> dict[str, int]:
    """File offset of each of these functions that the file defines; its position does not move.

    Raises ValueError for what is no ELF file of 64 bits or a damaged one, OSError.
    """
    elf = _header(fd)
    segments = _segments(fd, elf)
    symbols, strings = _symbols(fd, elf)
    defined = symbols[(symbols["section"] != 0) & (symbols["info"] & 15 == _FUNCTION)]
    found: dict[str, int] = {}
    for name in names:
        places = np.array(_places(strings, name.encode() + b"\0"), np.uint32)
        values = defined["value"][np.isin(defined["name"], places)].tolist()
        offset = _offset(segments, values[0]) if values else None
        if offset is not None:
            found[name] = offset
    return found


def entry_offset(fd: int) -> int:
    """File offset of the program's first instruction. Raises OSError for what is no program."""
    try:
        elf = _header(fd)
        found = _offset(_segments(fd, elf), elf.entry)
    except ValueError:
        found = None
    if found is None:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    return found


def _read(fd: int, at: int, size: int) -> bytes:
    """Exactly so many bytes. Raises ValueError where the file has fewer, or no such place."""
    if at + size >= 1 << 63:
        raise ValueError("not an ELF file that can be read: a place beyond any file")
    raw = os.pread(fd, size, at)
    if len(raw) != size:
        raise ValueError("not an ELF file that can be read: it ends too soon")
    return raw


def _header(fd: int) -> _Elf:
    raw = os.pread(fd, _HEADER.size, 0)
    if len(raw) != _HEADER.size or not raw.startswith(_MAGIC):
        raise ValueError("not an ELF file of 64 bits")
    fields = _HEADER.unpack(raw)
    entry, segments_at, sections_at = fields[4:7]
    segment_bytes, segments, section_bytes, sections = fields[9:13]
    odd = (segments and segment_bytes != _SEGMENT.size) or (sections and section_bytes != _SECTION.size)
    if odd or segments > _SEGMENTS_MOST or sections > _SECTIONS_MOST:
        raise ValueError("not an ELF file that can be read: its tables are odd")
    return _Elf(entry, segments_at, segments, sections_at, sections)


def _segments(fd: int, elf: _Elf) -> list[_Segment]:
    raw = _read(fd, elf.segments_at, elf.segments * _SEGMENT.size)
    found = []
    for kind, _flags, offset, address, _physical, size, _memory, _align in _SEGMENT.iter_unpack(raw):
        if kind == _LOADED:
            found.append(_Segment(offset, address, size))
    return found


def _symbols(fd: int, elf: _Elf) -> tuple[np.ndarray[tuple[int], np.dtype[np.void]], bytes]:
    """The dynamic symbols and the text that their names are in; none where the file has no such table."""
    sections = list(_SECTION.iter_unpack(_read(fd, elf.sections_at, elf.sections * _SECTION.size)))
    for _name, kind, _flags, _address, offset, size, link, *_rest in sections:
        if kind != _DYNAMIC_SYMBOLS:
            continue
        if link >= len(sections) or max(size, sections[link][5]) > _TABLE_BYTES_MOST:
            raise ValueError("not an ELF file that can be read: its symbols are odd")
        raw = _read(fd, offset, size // _SYMBOL.itemsize * _SYMBOL.itemsize)
        return np.frombuffer(raw, _SYMBOL), _read(fd, sections[link][4], sections[link][5])
    return np.zeros(0, _SYMBOL), b""


def _places(strings: bytes, wanted: bytes) -> list[int]:
    """Where a name stands, also as the end of a longer one, which linkers let share its place."""
    found = []
    at = strings.find(wanted)
    while at >= 0:
        found.append(at)
        at = strings.find(wanted, at + len(wanted))
    return found


def _offset(segments: list[_Segment], address: int) -> int | None:
    """Where in the file is what will be at an address; None for what is not in it."""
    for each in segments:
        if each.address <= address < each.address + each.size:
            return address - each.address + each.offset
    return None
