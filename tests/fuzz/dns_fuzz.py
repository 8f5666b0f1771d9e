# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the DNS parser, for development.

python -m tests.fuzz.dns_fuzz CORPUS SECONDS [SEED]

Takes the files in CORPUS, changes them, and keeps as new files those that go where none went before: lines in
their order (edges) within the parser's modules, and how often, by powers of two. Ends with a failed check.
What it found is tests/fixtures/dns, which tests/unit/test_dns_message.py holds on to.
"""

from __future__ import annotations

import hashlib
import ipaddress
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from kernob.state import dns_message, hostname_text

MODULES = {dns_message.__file__, hostname_text.__file__}
INTERESTING = (0, 1, 2, 3, 4, 12, 16, 28, 41, 63, 64, 127, 128, 192, 193, 255)
LONGEST = 1536


def check(data: bytes) -> None:
    """What must be true of every message; also called by the unit tests."""
    answer = dns_message.parse(data)
    if answer is None:
        return
    assert answer.addresses
    assert len(answer.wire_name) <= 255
    assert 0 <= answer.ttl_s < 2**31
    assert len(set(answer.addresses)) == len(answer.addresses) <= 64
    for address in answer.addresses:
        ipaddress.ip_address(address)
    assert len(hostname_text.normalise(answer.name)) <= hostname_text.MAX_NAME
    assert 0 < hostname_text.name_id(answer.wire_name) < 2**64


def edges(data: bytes) -> frozenset[tuple[Any, ...]]:
    """Where `check` goes with these bytes."""
    hits: Counter[tuple[str, int, int]] = Counter()
    last = [0]

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line":
            hits[frame.f_code.co_filename, last[0], frame.f_lineno] += 1
            last[0] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return frozenset((*edge, count.bit_length()) for edge, count in hits.items())


def changed(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to eight changes: bits, bytes, numbers, cuts, repetitions, pieces of another message."""
    out = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        at = chance.randrange(len(out) + 1)
        size = chance.randrange(1, 20)
        kind = chance.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = chance.choice(INTERESTING)
        elif kind == 2:
            out[at : at + 2] = chance.randrange(65536).to_bytes(2, "big")
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            out[at:at] = other[begin : begin + size]
        else:
            out[at:at] = chance.randbytes(size)
    return bytes(out[:LONGEST])


def main() -> None:
    """See the module."""
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    chance = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns())
    corpus = [path.read_bytes() for path in sorted(folder.iterdir())]
    seen: set[tuple[Any, ...]] = set()
    for data in corpus:
        seen |= edges(data)
    began, runs = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        data = changed(chance.choice(corpus), corpus, chance)
        runs += 1
        try:
            found = edges(data)
        except BaseException:
            (folder / f"failed-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise
        if not found <= seen:
            seen |= found
            corpus.append(data)
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{runs} messages, {len(corpus)} in the corpus, {len(seen)} edges, no failure")


if __name__ == "__main__":
    main()
