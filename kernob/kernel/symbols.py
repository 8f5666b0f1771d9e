# SPDX-License-Identifier: Apache-2.0
"""Where functions are in an ELF file, by its dynamic symbols. Called by `libraries`, once for each inode.

pyelftools is loaded at the first call, because it costs an agent without names nothing then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any


def function_offsets(fd: int, names: Sequence[str]) -> dict[str, int]:
    """File offset of each of these functions that the file defines.

    `fd` stays open, its position moves. Raises ValueError for what is no ELF file or a damaged one, OSError.
    """
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    found: dict[str, int] = {}
    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        try:
            elf = ELFFile(stream)
            table: Any = elf.get_section_by_name(".dynsym")
            if table is None:
                return {}
            by_hash: Any = elf.get_section_by_name(".gnu.hash") or elf.get_section_by_name(".hash")
            for name in names:
                symbol = (
                    by_hash.get_symbol(name) if by_hash else (table.get_symbol_by_name(name) or [None])[0]
                )
                if symbol is None or symbol["st_shndx"] == "SHN_UNDEF":
                    continue
                offset = next(elf.address_offsets(symbol["st_value"]), None)
                if offset is not None:
                    found[name] = int(offset)
        except (ELFError, ConstructError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an ELF file that can be read: {error}") from error
    return found


def entry_offset(fd: int) -> int:
    """File offset of the program's first instruction. Raises OSError for what is no program."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        try:
            elf = ELFFile(stream)
            found = next(elf.address_offsets(elf["e_entry"]), None)
        except ELFError as error:
            raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC)) from error
    if found is None:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    return int(found)
