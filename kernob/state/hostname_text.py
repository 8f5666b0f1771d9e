# SPDX-License-Identifier: Apache-2.0
"""What counts as a hostname: the one form under which a destination is known, or none at all.

In: bytes as a process, a packet or a file gave them. Out: a name fit to stand in series, or "". Pure.
"""

from __future__ import annotations

import re

MAX_NAME = 253  # RFC 1035, 2.3.4, as text
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"[0-9]+\Z|0x[0-9a-f]*\Z")
_FNV_OFFSET, _FNV_PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def normalise(raw: bytes) -> str:
    """Lower case, no trailing dot, international labels as on the wire; "" for all that is no hostname.

    Refused are addresses in any notation that inet_aton or inet_pton read, what is longer than 253 bytes,
    and labels of anything but letters, digits, hyphens inside, and underscores (service names have them).

    >>> normalise(b"API.Example.com."), normalise("b\u00fccher.example".encode()), normalise(b"10.1.2.3")
    ('api.example.com', 'xn--bcher-kva.example', '')
    """
    if not raw or len(raw) > 4 * MAX_NAME:
        return ""
    try:
        text = raw.decode("ascii") if raw.isascii() else raw.decode("utf-8").encode("idna").decode("ascii")
    except UnicodeError:
        return ""
    text = text.lower().removesuffix(".")
    labels = text.split(".")
    if len(text) > MAX_NAME or not all(map(_LABEL.match, labels)) or _NUMBER.match(labels[-1]):
        return ""
    return text


def name_id(raw: bytes) -> int:
    """The number by which programs in the kernel know a name: FNV-1a, 64 bits, never 0.

    The same function as hash_name() of bpf/names.bpf.c, over the bytes exactly as they were given.
    """
    value = _FNV_OFFSET
    for byte in raw:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value or 1
