# SPDX-License-Identifier: Apache-2.0
"""Text that processes chose themselves, made safe to print, to export and to compare.

In: bytes or text from the kernel or /proc (names, command lines, control groups), possibly hostile.
Out: one line of visible text of bounded length. Called for every name before it enters `model`.
"""

from __future__ import annotations

import unicodedata

CUT_MARK = "…"
"""Stands at the end of everything that was longer than its bound."""

BAD_MARK = "\N{REPLACEMENT CHARACTER}"
EMPTY_NAME = "?"

ARGS_BYTES = 192
"""How much of a command line the kernel side captures (ARGS_LEN in bpf/types.h)."""

_MARKS_IN_A_ROW = 2
_HOSTILE_CATEGORIES = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # Hangul fillers
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian variation selectors
        (0x2800, 0x2800),  # blank Braille pattern
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),  # variation selectors
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)
"""Characters that draw nothing although their category says letter, mark or symbol."""


def sanitize(raw: bytes | str, limit: int = 64) -> str:
    """Return `raw` as one line of visible text of 1..`limit` characters.

    - It ends at the first NUL, as a C string does; without any text it is "?".
    - What is not UTF-8, a control, a surrogate, unassigned or private, invisible, or changes the
      direction of writing becomes U+FFFD; so no escape sequence survives. Every kind of blank becomes
      a space, runs of them one, none at the ends. At most two combining marks stand on a character.
    - The result has at most `limit` characters and 2 * `limit` bytes of UTF-8; a longer one ends in "…".

    Idempotent: sanitize(sanitize(x, n), n) == sanitize(x, n). Raises ValueError for a limit below 4.
    """
    if limit < 4:
        raise ValueError(f"limit must be at least 4, not {limit}")
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    text = text.partition("\0")[0]
    if not (text.isascii() and text.isprintable()):
        text = _visible(text)
    return _bounded(" ".join(text.split()), limit) or EMPTY_NAME


def split_args(raw: bytes, limit_bytes: int = ARGS_BYTES) -> tuple[str, ...]:
    """Split a command line as the kernel keeps it (arguments ended by NUL) into sanitised arguments.

    `raw` holds at most `limit_bytes`; when it is full and does not end in NUL, its last argument was
    cut short and gets the mark "…". Empty arguments stay "", except at the end, where they are what
    a program leaves behind that writes a title over its arguments.
    """
    cut = len(raw) >= limit_bytes and not raw.endswith(b"\0")
    parts = raw.rstrip(b"\0").split(b"\0") if raw.strip(b"\0") else []
    args = [sanitize(part, 256) if part else "" for part in parts]
    if cut and args:
        args[-1] = args[-1].removesuffix(CUT_MARK) + CUT_MARK
    return tuple(args)


def _visible(text: str) -> str:
    """Replace character by character what must not reach a terminal or an attribute value."""
    kept: list[str] = []
    marks = _MARKS_IN_A_ROW  # a mark with nothing before it would land on the column to its left
    for char in text:
        category = unicodedata.category(char)
        if category == "Zs":
            kept.append(" ")
            marks = _MARKS_IN_A_ROW
        elif category in _HOSTILE_CATEGORIES or char in _INVISIBLE:
            kept.append(BAD_MARK)
            marks = 0
        elif category in ("Mn", "Me"):
            kept.append(char if marks < _MARKS_IN_A_ROW else BAD_MARK)
            marks = marks + 1 if marks < _MARKS_IN_A_ROW else 0
        else:
            kept.append(char)
            marks = 0
    return "".join(kept)


def _bounded(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters and 2 * `limit` bytes, the mark included."""
    limit_bytes = 2 * limit
    if len(text) <= limit and (text.isascii() or len(text.encode()) <= limit_bytes):
        return text
    room_bytes = limit_bytes - len(CUT_MARK.encode())
    kept = 0
    for char in text[: limit - 1]:
        room_bytes -= len(char.encode())
        if room_bytes < 0:
            break
        kept += 1
    return text[:kept].rstrip(" ") + CUT_MARK


def wild(pattern: str) -> str:
    """A pattern in which only * and ? are special, for fnmatch and for SQLite's GLOB.

    >>> import fnmatch
    >>> fnmatch.fnmatchcase("worker[1]", wild("work*[1]")), fnmatch.fnmatchcase("worker1", wild("worker[1]"))
    (True, False)
    """
    return pattern.replace("[", "[[]")
