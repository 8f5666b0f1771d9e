# SPDX-License-Identifier: Apache-2.0
"""kernel.btf and kernel.offsets, on hand-made BTF and on this machine's own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kernob.errors import BtfError
from kernob.kernel import offsets
from kernob.kernel.btf import VMLINUX, Btf

INT, STRUCT, UNION, ENUM, TYPEDEF = 1, 4, 5, 6, 8


class Maker:
    """Assembles BTF blobs type by type."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.types = bytearray()

    def name(self, text: str) -> int:
        """Offset of a string."""
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, name: str, kind: int, count: int, size: int, tail: bytes = b"") -> None:
        """One type; ids count from 1."""
        self.types += struct.pack("<III", self.name(name), kind << 24 | count, size) + tail

    def members(self, *rows: tuple[str, int, int]) -> bytes:
        """(name, type id, bit offset) of each."""
        return b"".join(struct.pack("<III", self.name(n), t, o) for n, t, o in rows)

    def blob(self) -> bytes:
        """The whole."""
        head = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return head + bytes(self.types) + bytes(self.strings)


@pytest.fixture
def small() -> Btf:
    """int; struct inner {int a; int b}; struct outer {int x; union {int u; struct inner i;}; inner_t t;}."""
    maker = Maker()
    maker.add("int", INT, 0, 4, struct.pack("<I", 32))
    maker.add("inner", STRUCT, 2, 8, maker.members(("a", 1, 0), ("b", 1, 32)))
    maker.add("", UNION, 2, 8, maker.members(("u", 1, 0), ("i", 2, 0)))
    maker.add("inner_t", TYPEDEF, 0, 2)
    maker.add("outer", STRUCT, 3, 24, maker.members(("x", 1, 0), ("", 3, 64), ("t", 4, 128)))
    maker.add("colour", ENUM, 2, 4, struct.pack("<IiIi", maker.name("red"), 3, maker.name("blue"), -1))
    maker.add("btf_trace_thing", TYPEDEF, 0, 1)
    return Btf(maker.blob(), "test")


def test_members_are_found_through_anonymous_unions_and_typedefs(small: Btf) -> None:
    """Offsets add up along a path, whatever stands between."""
    assert small.offset("outer.x") == 0
    assert small.offset("outer.u") == 8
    assert small.offset("outer.i.b") == 12
    assert small.offset("outer.t.b") == 20


def test_types_that_refer_to_nothing_or_to_themselves_are_malformed() -> None:
    """An id behind the last type, a typedef of itself, an anonymous union in itself: BtfError, no hang."""
    maker = Maker()
    maker.add("lost", STRUCT, 1, 8, maker.members(("", 99, 0)))
    maker.add("itself", TYPEDEF, 0, 2)
    maker.add("endless", STRUCT, 1, 8, maker.members(("", 2, 0)))
    maker.add("", UNION, 1, 8, maker.members(("", 4, 0)))
    maker.add("deep", STRUCT, 1, 8, maker.members(("", 4, 0)))
    btf = Btf(maker.blob(), "test")
    for name in ("lost", "endless", "deep"):
        with pytest.raises(BtfError, match=f"test: malformed BTF of struct {name}"):
            btf.offset(f"{name}.member")


def test_enumerators_and_tracepoints(small: Btf) -> None:
    """Enum values and tracepoint type ids; None for what is not there."""
    assert (small.enum_value("colour", "red"), small.enum_value("colour", "blue")) == (3, -1)
    assert small.enum_value("colour", "green") is None
    assert small.tracepoint_id("thing") == 7
    assert small.tracepoint_id("other") is None
    assert small.function_id("nothing") is None


@pytest.mark.parametrize(
    ("path", "said"), [("outer.missing", "no member missing"), ("nowhere.x", "no struct nowhere")]
)
def test_what_is_missing_is_named(small: Btf, path: str, said: str) -> None:
    """The error names the struct or the member."""
    with pytest.raises(BtfError, match=said):
        small.offset(path)


def test_no_prefix_of_a_blob_is_accepted_or_crashes(small: Btf) -> None:
    """Truncated BTF is a BtfError at every length, never another exception."""
    blob = small._blob
    for length in range(len(blob)):
        with pytest.raises(BtfError):
            Btf(blob[:length], "cut")


def test_not_btf_and_no_file(tmp_path: Path) -> None:
    """A wrong magic and an absent file are one clear line."""
    other = tmp_path / "vmlinux"
    other.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(BtfError, match="not BTF"):
        Btf.load(other)
    with pytest.raises(BtfError, match=r"no BTF at .*: No such file"):
        Btf.load(tmp_path / "absent")


@pytest.mark.skipif(not VMLINUX.exists(), reason="kernel without BTF")
def test_this_kernel_has_every_field() -> None:
    """All offsets that bpf/ reads exist here, from a copy in a file as well."""
    macros = offsets.from_btf(Btf.load())
    assert macros.keys() >= offsets.FIELDS.keys()
    assert macros["OFF_TASK_TGID"] > 0
