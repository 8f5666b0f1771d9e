# SPDX-License-Identifier: Apache-2.0
"""Compiles bpf/ with BCC and prints the result; run as a process of its own.

In: a JSON request on standard input (text, cflags, functions, tree). Out: one JSON document on
standard output: maps with their record types, programs as instructions whose map references are
names. BCC keeps some 120 MB of LLVM for good, which goes away with this process; that is why nothing
else in Kernob may import bcc.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

_SCALARS = {
    "char": "<i1",
    "signed char": "<i1",
    "unsigned char": "<u1",
    "short": "<i2",
    "unsigned short": "<u2",
    "int": "<i4",
    "unsigned int": "<u4",
    "long": "<i8",
    "unsigned long": "<u8",
    "long long": "<i8",
    "unsigned long long": "<u8",
    "_Bool": "<u1",
}
NO_BCC = 3
_PSEUDO_MAP_FD = 1
_LD_IMM64 = 0x18


def dtype_of(desc: Any) -> Any:
    """A numpy dtype description out of BCC's description of a C type (scalar, array or struct)."""
    if isinstance(desc, str):
        return _SCALARS[desc]
    _name, members, *_ = desc
    fields = []
    for member in members:
        field_name, field_type, *shape = member
        if shape and isinstance(shape[0], list):
            fields.append([field_name, dtype_of(field_type), shape[0]])
        else:
            fields.append([field_name, dtype_of(field_type)])
    return fields


def _declare(lib: Any) -> None:
    """Gives ctypes the types of bcc_common.h; it cuts pointers to 32 bits where it is not told better.

    Which of these functions BCC's own module declares depends on its version.
    """
    lib.bpf_num_tables.argtypes, lib.bpf_num_tables.restype = [ctypes.c_void_p], ctypes.c_size_t
    for function, result in (
        (lib.bpf_table_name, ctypes.c_char_p),
        (lib.bpf_table_fd_id, ctypes.c_int),
        (lib.bpf_table_key_desc_id, ctypes.c_char_p),
        (lib.bpf_table_leaf_desc_id, ctypes.c_char_p),
    ):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t], result


def _tables(bpf: Any, lib: Any) -> tuple[list[dict[str, Any]], dict[int, str]]:
    maps, names = [], {}
    for i in range(lib.bpf_num_tables(bpf.module)):
        name = lib.bpf_table_name(bpf.module, i).decode()
        fd = lib.bpf_table_fd_id(bpf.module, i)
        names[fd] = name
        with Path(f"/proc/self/fdinfo/{fd}").open(encoding="ascii") as info:
            facts = dict(line.split(":", 1) for line in info if ":" in line)
        maps.append(
            {
                "name": name,
                "type": int(facts["map_type"]),
                "key_size": int(facts["key_size"]),
                "value_size": int(facts["value_size"]),
                "max_entries": int(facts["max_entries"]),
                "key": dtype_of(json.loads(lib.bpf_table_key_desc_id(bpf.module, i))),
                "value": dtype_of(json.loads(lib.bpf_table_leaf_desc_id(bpf.module, i))),
            }
        )
    return maps, names


def _program(code: bytes, names: dict[int, str]) -> dict[str, Any]:
    """Instructions with every map's descriptor zeroed, and where which map belongs."""
    out = bytearray(code)
    references = []
    for at in range(0, len(code), 8):
        opcode, registers, _offset, immediate = struct.unpack_from("<BBhi", code, at)
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            references.append([at // 8, names[immediate]])
            struct.pack_into("<i", out, at + 4, 0)
    return {"code": base64.b64encode(bytes(out)).decode(), "references": references}


def main() -> int:
    """Reads the request, compiles, prints. Exit code 1: does not compile; NO_BCC: no usable BCC here."""
    request = json.load(sys.stdin)
    os.environ.setdefault("BCC_LINUX_VERSION_CODE", "0x060000")
    if request["tree"]:
        os.environ["BCC_KERNEL_SOURCE"] = request["tree"]
    # BCC writes notes to standard output, which is the result's: give it standard error instead
    result = os.dup(1)
    os.dup2(2, 1)
    try:
        import bcc
        from bcc.libbcc import lib
    except (ImportError, OSError, AttributeError) as error:  # no module, no library, or one too old for it
        print(error, file=sys.stderr)
        return NO_BCC
    try:
        bpf = bcc.BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:  # BCC raises bare Exception; its diagnosis went to standard error
        print(error, file=sys.stderr)
        return 1
    _declare(lib)
    maps, names = _tables(bpf, lib)
    programs = {}
    for function in request["functions"]:
        code = bpf.dump_func(function)
        if code is None:
            print(f"no function {function} in the compiled text", file=sys.stderr)
            return 1
        programs[function] = _program(code, names)
    document = {"bcc": bcc.__version__, "maps": maps, "programs": programs}
    with os.fdopen(result, "w", encoding="ascii") as stream:
        json.dump(document, stream)
    sys.stdout.flush()
    os._exit(0)  # skip LLVM's destructors


if __name__ == "__main__":
    sys.exit(main())
