# SPDX-License-Identifier: Apache-2.0
"""A slow disk: `slow_disk.py MOUNT_POINT BYTES BYTES_PER_S`; a FUSE file system with one file, `disk`.

The file lives in memory, is as large as asked for, and takes writes one after another at that pace. A loop
device on it is a disk that anybody can saturate, and no other disk is any slower for it. Speaks the kernel's
own protocol (include/uapi/linux/fuse.h, 7.31), so that no library is needed. Ends when it is unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import time

from wire import log

ROOT, FILE = 1, 2
MAX_WRITE = 1 << 20
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 20, 25, 26, 27, 29, 36, 38, 42
SILENT = {FORGET, INTERRUPT, BATCH_FORGET}
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
DIRECT_IO = 1
PR_SET_NAME = 15
VALID_S = 1 << 20


class Disk:
    """The file and its pace."""

    def __init__(self, size: int, rate: float) -> None:
        self.data = bytearray(size)
        self.rate = rate

    def attributes(self, node: int) -> bytes:
        """struct fuse_attr."""
        size = len(self.data) if node == FILE else 0
        mode = 0o100600 if node == FILE else 0o040700
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(  # noqa: PLR0911
        self, opcode: int, node: int, body: bytes
    ) -> bytes | int:
        """The body of a reply, or an error's number."""
        if opcode == INIT:
            flags = BIG_WRITES | MAX_PAGES
            return struct.pack("<4I2H2I2H8I", 7, 31, 0, flags, 4, 3, MAX_WRITE, 1, 256, 0, *[0] * 8)
        if opcode == LOOKUP:
            if node != ROOT or body.rstrip(b"\0") != b"disk":
                return errno.ENOENT
            return struct.pack("<4Q2I", FILE, 0, VALID_S, VALID_S, 0, 0) + self.attributes(FILE)
        if opcode in (GETATTR, SETATTR):
            return struct.pack("<Q2I", VALID_S, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 0, DIRECT_IO if opcode == OPEN else 0, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<2QI", body)
            return bytes(self.data[offset : offset + size])
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("<2QI", body)
            time.sleep(size / self.rate)
            self.data[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("<2I", size, 0)
        if opcode == STATFS:
            return bytes(80)
        return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH, FSYNC, DESTROY) else errno.ENOSYS


def main(mount_point: str, size: str, rate: str) -> None:
    """See the module."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"kernob-demo", mount_point.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), f"mount of {mount_point}")
    # What it does is a disk's work: host metrics leave it out by that name, like the kernel's own threads.
    libc.prctl(PR_SET_NAME, b"nvme-demo", 0, 0, 0)
    log("disk turns")
    disk = Disk(int(size), float(rate))
    while True:
        try:
            request = os.read(fd, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        if opcode in SILENT:
            continue
        found = disk.answer(opcode, node, request[40:])
        code, body = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(fd, struct.pack("<IiQ", 16 + len(body), code, unique) + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
