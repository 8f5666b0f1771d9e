# SPDX-License-Identifier: Apache-2.0
"""`kernob health`: whether the agent on the socket answers and ticked recently, as an exit code.

The environment or a socket's path enters, 0 or 1 and, with 1, one line leave. Called by `__main__` and
`cli`. A container's health check runs it every few seconds, so it imports only what starts with Python
anyway; settings are loaded the long way only where a configuration file cannot be read the short way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping

DEFAULT_SOCKET = "/run/kernob/agent.sock"
_DEFAULT_TOML = "/etc/kernob/kernob.toml"
_PATIENCE_S = 3.0
"""For connecting and answering together; the agent answers between two instructions of a tick."""
_MAX_ANSWER_BYTES = 4096
_UCRED_BYTES = 12  # pid, uid, gid: struct ucred, unix(7)


def run_health(path: str) -> int:
    """Return 0 where the agent on `path` is well (a terminal is told so); else say why not, and return 1."""
    complaint = examine(path)
    if not complaint and sys.stdout.isatty():
        print(f"The agent on {path} is well.")
    if complaint:
        line = "".join(letter if letter.isprintable() else "?" for letter in complaint)
        print(f"kernob: {line}", file=sys.stderr)
    return 1 if complaint else 0


def socket_of(environ: Mapping[str, str]) -> str:
    """Return the path of the agent's socket by the rules of `config`. Raises ConfigError.

    That is one variable, or one line of a file; loading all settings would cost 0.15 s each time.
    """
    if "KERNOB_SOCKET" in environ:
        return environ["KERNOB_SOCKET"]
    file = environ.get("KERNOB_CONFIG", _DEFAULT_TOML)
    if "KERNOB_CONFIG" not in environ and not os.path.exists(file):  # noqa: PTH110 - pathlib is 10 ms more
        return DEFAULT_SOCKET
    path = _from_file(file)
    if path is not None:
        return path
    from kernob.config import load_settings

    return os.fspath(load_settings(environ).socket_path)


def _from_file(file: str) -> str | None:
    """Return the path a TOML file sets, or the default; None where `config` must read it, or complain."""
    import importlib

    try:
        tomllib = importlib.import_module("tomllib")  # Python 3.11
        with open(file, "rb") as stream:  # noqa: PTH123
            values = {key.lower(): value for key, value in tomllib.load(stream).items()}
    except (ImportError, OSError, ValueError, RecursionError):
        return None
    path = values.get("socket", DEFAULT_SOCKET)
    return path if isinstance(path, str) else None


def examine(path: str, patience_s: float = _PATIENCE_S) -> str:
    """Return what is wrong with the agent on `path`, in words; "" where nothing is."""
    deadline_s = time.monotonic() + patience_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience_s)
            connection.connect(path)
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED_BYTES)
            uid = int.from_bytes(raw[4:8], sys.byteorder)
            if uid not in {0, os.geteuid()}:
                return f"{path} is served by uid {uid}, neither root nor you: not believed"
            with contextlib.suppress(BrokenPipeError):  # at its limit it answers unasked, and hangs up
                connection.sendall(b'{"v":1,"want":"pulse"}\n')
            answer = _line(connection, deadline_s)
    except TimeoutError:
        return f"the agent on {path} does not answer within {patience_s:g} s"
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"no agent answers on {path or 'an empty path'}: {reason}"
    return _judged(answer, path)


def _line(connection: socket.socket, deadline_s: float) -> bytes:
    received = b""
    while b"\n" not in received and len(received) < _MAX_ANSWER_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(_MAX_ANSWER_BYTES)
        if not chunk:
            break
        received += chunk
    return received


def _judged(answer: bytes, path: str) -> str:
    """What an answer of `kernob.view.encode_pulse`, or of `encode_refusal`, says of the agent."""
    import json

    try:
        document = json.loads(answer)
        pulse = document.get("pulse")
        if pulse is None:
            return f"the agent on {path} refused: {str(document['error'])[:200]}"
        age_s, limit_s = float(pulse["age_s"]), float(pulse["limit_s"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"cannot read the answer of the agent on {path}: run the same version of kernob"
    if not 0 <= age_s <= limit_s:
        return (
            f"the agent on {path} last read the kernel's counters {age_s:.0f} s ago (limit {limit_s:.0f} s)"
        )
    return ""


def main(environ: Mapping[str, str]) -> int:
    """Answer for the agent the environment names; whatever is wrong, also with a setting, is exit code 1."""
    from kernob.errors import KernobError

    try:
        return run_health(socket_of(environ))
    except KernobError as error:
        print(f"kernob: {error}", file=sys.stderr)
        return 1
