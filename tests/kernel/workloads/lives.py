# SPDX-License-Identifier: Apache-2.0
"""Processes that come and go in known ways; prints what became of each kind, as waitpid told it.

Usage: lives.py CASE [COUNT [PROGRAM]]. One JSON line: {"forks": n, "ends": {status: n}, ...}; statuses as
in wait(2). PROGRAM is a shell under a name of its own, so that its figures stand apart.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HARMLESS = {
    getattr(signal, f"SIG{name}") for name in ("STOP", "TSTP", "TTIN", "TTOU", "CONT", "CHLD", "URG", "WINCH")
}


def reap(count: int) -> Counter[int]:
    """Waits for so many children."""
    return Counter(os.wait()[1] for _ in range(count))


def storm(count: int, program: str) -> dict[str, Any]:
    """Most only fork, each fifth runs a program; a hundred at a time, ends of every kind."""
    ends: Counter[int] = Counter()
    spawned: Counter[int] = Counter()
    running: dict[int, bool] = {}
    for number in range(count):
        if number % 5 == 0:
            arguments = [program, "-c", f"exit {number // 5 % 4}"]
            pid = os.posix_spawn(program, arguments, {})
        else:
            pid = os.fork()
            if not pid:
                if number % 50 == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(number % 7)
        running[pid] = number % 5 == 0
        if len(running) >= 100 or number == count - 1:
            while running and (len(running) > 50 or number == count - 1):
                pid, status = os.wait()
                (spawned if running.pop(pid) else ends)[status] += 1
    return {"forks": count, "ends": ends, "spawned": spawned}


LOOP = """
i=0
while [ $i -lt $2 ]; do
    if [ $((i % 5)) = 0 ]; then $1 -c "exit $((i / 5 % 4))"; s=x$?; else (exit $((i % 7))); s=f$?; fi
    eval "$s=\\$((\\${$s:-0} + 1))"
    i=$((i + 1))
done
for s in f0 f1 f2 f3 f4 f5 f6 x0 x1 x2 x3; do eval "echo $s \\${$s:-0}"; done
"""


def shell(count: int, program: str) -> dict[str, Any]:
    """The same by a shell, which forks faster than Python: PROGRAM forks, PROGRAM-x is run."""
    told = subprocess.run(
        [program, "-c", LOOP, program, program + "-x", str(count)], capture_output=True, text=True, check=True
    )
    found = {line.split()[0]: int(line.split()[1]) for line in told.stdout.splitlines()}
    ends = {int(name[1:]) << 8: n for name, n in found.items() if name[0] == "f" and n}
    spawned = {int(name[1:]) << 8: n for name, n in found.items() if name[0] == "x" and n}
    return {"forks": count, "ends": ends, "spawned": spawned}


def codes(count: int, program: str) -> dict[str, Any]:
    """Every exit code and every signal that ends a process, once by a fork, once by a program."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signals = [number for number in signal.valid_signals() if number not in HARMLESS]
    ends: Counter[int] = Counter()
    spawned: Counter[int] = Counter()
    for code in range(256):
        if not os.fork():
            os._exit(code)
        ends[os.wait()[1]] += 1
        os.posix_spawn(program, [program, "-c", f"exit {code}"], {})
        spawned[os.wait()[1]] += 1
    for number in signals:
        if not os.fork():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            time.sleep(10)
            os._exit(99)
        ends[os.wait()[1]] += 1
    return {"forks": 512 + len(signals), "ends": ends, "spawned": spawned}


def threads(count: int, _program: str) -> dict[str, Any]:
    """Processes with threads: whose leader goes first, whose thread ends all, whose thread is killed."""
    libc = ctypes.CDLL(None)

    def life(kind: int) -> None:
        def run() -> None:
            time.sleep(0.05)
            if kind == 0:
                os._exit(5)
            if kind == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            while len([*tasks.iterdir()]) > 2 or leader.read_text().rsplit(") ")[1][0] != "Z":
                time.sleep(0.001)  # else another one may be the last
            libc.syscall(60, 3)  # this thread only

        tasks = Path("/proc/self/task")
        leader = tasks / str(os.getpid()) / "stat"
        others = [threading.Thread(target=time.sleep, args=(0.02,)) for _ in range(3)]
        for each in (*others, threading.Thread(target=run)):
            each.start()
        if kind == 2:
            libc.syscall(60, 7)  # the leader alone; the last thread ends with its own code
        time.sleep(10)

    ends: Counter[int] = Counter()
    for number in range(count):
        if not os.fork():
            life(number % 3)
            os._exit(98)
        ends[os.wait()[1]] += 1
    return {"forks": count, "ends": ends, "spawned": {}}


def together(count: int, _program: str) -> dict[str, Any]:
    """Processes whose threads all end at once."""
    ends: Counter[int] = Counter()
    for _ in range(count):
        if not os.fork():
            for _ in range(3):
                threading.Thread(target=time.sleep, args=(10,)).start()
            os._exit(5)
        ends[os.wait()[1]] += 1
    return {"forks": count, "ends": ends, "spawned": {}}


def execs(count: int, program: str) -> dict[str, Any]:
    """Each process runs the program three times, one image after the other, then ends with code 4."""
    ends: Counter[int] = Counter()
    script = f'case $1 in 3) exit 4;; *) exec {program} -c "$0" "$0" $(($1 + 1));; esac'
    for _ in range(count):
        if not os.fork():
            os.execv(program, [program, "-c", script, script, "1"])
        ends[os.wait()[1]] += 1
    return {"forks": count, "ends": {}, "spawned": ends}


def lasting(count: int, _program: str) -> dict[str, Any]:
    """Workers without exec that live until standard input says so; the line before says they are there."""
    pids = []
    for _ in range(count):
        pids.append(os.fork())
        if not pids[-1]:
            signal.pause()
            os._exit(97)
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    return {"forks": count, "ends": reap(count), "spawned": {}}


CASES = {
    "storm": storm,
    "shell": shell,
    "codes": codes,
    "threads": threads,
    "together": together,
    "execs": execs,
    "lasting": lasting,
}


def main() -> None:
    """Plays one case."""
    case, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(json.dumps({"pid": os.getpid(), **CASES[case](count, (sys.argv[3:] or [""])[0])}), flush=True)


if __name__ == "__main__":
    main()
