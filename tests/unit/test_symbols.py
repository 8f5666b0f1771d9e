# SPDX-License-Identifier: Apache-2.0
"""Symbols of C libraries: exact for real ones, and harmless for whatever a process maps under their name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernob.kernel.symbols import entry_offset, function_offsets

NAMES = ("getaddrinfo", "gethostbyname_r", "gethostbyname", "no_such_function")


def library() -> Path:
    """The C library of this interpreter."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    found = re.search(r"(/\S*/(?:libc\.so\.6|ld-musl-\S+))", maps)
    assert found, "this interpreter has no C library of its own"
    return Path(found[1])


LIBRARY = library().read_bytes()
SECTIONS_AT, SECTIONS = *struct.unpack_from("<Q", LIBRARY, 40), *struct.unpack_from("<H", LIBRARY, 60)


def section(kind: int) -> int:
    """Where the header of the first section of a kind is."""
    places = (SECTIONS_AT + 64 * number for number in range(SECTIONS))
    found: int = next(at for at in places if struct.unpack_from("<I", LIBRARY, at + 4) == (kind,))
    return found


def read(content: bytes, tmp_path: Path, size: int = 0) -> dict[str, int]:
    """What is found in a file of this content, of that size where it is to have a hole behind."""
    file = tmp_path / "libc.so.6"
    file.write_bytes(content)
    if size:
        os.truncate(file, size)
    with file.open("rb") as stream:
        return function_offsets(stream.fileno(), NAMES)


def test_functions_are_where_the_loader_has_put_them(tmp_path: Path) -> None:
    """Against dlsym(3) and where this process has the library mapped."""
    libc = ctypes.CDLL(None)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    expected = {}
    for name in NAMES[:3]:
        address = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0
        for begin, end, offset in re.findall(rf"(?m)^(\S+)-(\S+) \S+ (\S+) .*{library()}$", maps):
            if int(begin, 16) <= address < int(end, 16):
                expected[name] = address - int(begin, 16) + int(offset, 16)
    assert read(LIBRARY, tmp_path) == expected
    assert len(expected) == 3
    with Path("/proc/self/exe").open("rb") as stream:
        assert entry_offset(stream.fileno()) > 0


def patched(at: int, value: int, form: str = "<Q") -> bytes:
    """The library with one number changed."""
    content = bytearray(LIBRARY)
    struct.pack_into(form, content, at, value)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: b"#!/bin/sh\n",
        lambda: patched(4, 1, "B"),  # of 32 bits
        lambda: patched(54, 0, "<H"),  # segments of no size
        lambda: patched(56, 0xFFFF, "<H"),  # as many as there can be
        lambda: patched(60, 0xFFFF, "<H"),  # likewise sections
        lambda: patched(40, 2**64 - 64),  # far behind any file's end
        lambda: patched(section(11) + 32, 2**40),  # symbols without end
        lambda: patched(section(11) + 40, 0xFFFF, "<I"),  # their names are in no section
        lambda: LIBRARY[:100_000],
    ],
)
def test_what_is_damaged_is_said(content: Callable[[], bytes], tmp_path: Path) -> None:
    """One kind of error, whatever it is, also where the file goes on for a tebibyte without a byte in it."""
    made = content()
    with pytest.raises(ValueError, match="not an ELF file"):
        read(made, tmp_path)
    with contextlib.suppress(ValueError):
        assert read(made or b"\0", tmp_path, 1 << 40) == {}


def test_hashes_are_nobodys_business(tmp_path: Path) -> None:
    """A table of hashes with no bucket, in which others divide by 0 or go in circles, changes nothing."""
    (gnu_hash,) = struct.unpack_from("<Q", LIBRARY, section(0x6FFFFFF6) + 24)
    assert read(patched(gnu_hash, 0, "<I"), tmp_path) == read(LIBRARY, tmp_path)


@given(st.lists(st.tuples(st.integers(0, 64 + 64 * SECTIONS - 1), st.integers(0, 255)), max_size=8))
def test_no_bytes_do_harm(changes: list[tuple[int, int]]) -> None:
    """Headers with bytes changed at random: offsets within 63 bits, or a ValueError."""
    content = bytearray(LIBRARY)
    for at, value in changes:
        content[at if at < 64 else SECTIONS_AT + at - 64] = value
    file = os.memfd_create("library")
    try:
        os.write(file, content)
        assert all(0 <= offset < 1 << 64 for offset in function_offsets(file, NAMES).values())
    except ValueError:
        pass
    finally:
        os.close(file)
