# SPDX-License-Identifier: Apache-2.0
"""Machines that lack something, and processes that call themselves something evil.

What is refused because of a setting, of missing rights or of a second agent stands in test_hygiene.py.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpfids import all_ids, left_behind
from harness import PROGRAM, ROOT, environment, patience, refused_agent, running_agent, wait_until

STOP_BOUND_S = 3.0

# In mounts of its own, which go away with it: a kernel without type information and without headers.
NO_TYPES = (
    "mount -t tmpfs none /sys/kernel && if [ -d /lib/modules ]; then mount -t tmpfs none /lib/modules; fi"
)


def in_own_mounts(commands: str) -> tuple[str, ...]:
    """What to put before a command so that it runs where `commands` changed the mounts."""
    if not shutil.which("unshare"):
        pytest.skip("missing feature: unshare")
    return ("unshare", "--mount", "sh", "-c", f'{commands} && exec "$@"', "sh")


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fails the test if a program, map or link that did not exist before belongs to nobody afterwards."""
    before = all_ids()
    yield
    wait_until(lambda: not left_behind(before), "the kernel to free what the agent held", 30)


@pytest.mark.parametrize(
    "arguments", [["top"], ["top", "--once", "--json"], ["doctor"], ["doctor", "--json"]]
)
def test_screens_without_root_give_the_reason_and_exit_3(agents: Path, arguments: list[str]) -> None:
    """One line from top; from doctor its report, with the reason in it."""
    if not shutil.which("setpriv"):
        pytest.skip("missing feature: setpriv")
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *PROGRAM, *arguments],
        cwd=ROOT,
        env=environment(socket="/run/kernob-of-this-test/agent.sock"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    reason = "Kernob needs root: run it with sudo, or in a privileged container"
    if arguments[0] == "top":
        assert (done.stdout, done.stderr) == ("", f"kernob: {reason}\n")
    else:
        assert (reason in done.stdout, done.stderr) == (True, "")


def test_without_type_information_it_says_what_to_install(agents: Path) -> None:
    """No BTF and no headers: exit 5, one line that names the package."""
    with nothing_left():
        code, said = refused_agent(agents / "types", *in_own_mounts(NO_TYPES))
    assert code == 5, said
    assert len(said.splitlines()) == 1, said
    assert f"install linux-headers-{os.uname().release}" in said


def test_without_bcc_it_says_what_to_install(
    agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No BCC and nothing compiled before: exit 3, one line that names the package."""
    (tmp_path / "bcc.py").write_text("raise ModuleNotFoundError(\"No module named 'bcc'\")\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    with nothing_left():
        code, said = refused_agent(agents / "bcc", cache_dir=tmp_path / "cache")
    assert code == 3, said
    assert len(said.splitlines()) == 1, said
    assert "install python3-bpfcc" in said


def test_a_cache_that_cannot_be_written_costs_only_time(agents: Path) -> None:
    """The agent says so, compiles and runs."""
    with nothing_left(), running_agent(agents / "uncached", cache_dir="/proc/kernob") as agent:
        agent.stop()
    assert "compiled programs are not cached" in agent.log.read_text()


def _heed_interrupts() -> None:
    """A shell's background jobs inherit SIGINT ignored, and would until Python has its own handler."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_starting_leaves_nothing(agents: Path, number: signal.Signals) -> None:
    """At whatever moment: it ends in time with 0, or by the signal before it has a handler for it."""
    directory = agents / f"early{number}"
    settings = environment(socket=directory / "run" / "agent.sock", cache_dir=agents / "cache")
    for delay_ms in range(0, 1600, 200):
        with nothing_left():
            process = subprocess.Popen(
                [*PROGRAM, "run"],
                cwd=ROOT,
                env=settings,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=_heed_interrupts,  # noqa: PLW1509 - no thread runs here
            )
            time.sleep(delay_ms / 1000)
            asked_s = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            assert time.monotonic() - asked_s < STOP_BOUND_S * patience()
        # Python answers an interrupt with 1 while it is still looking for its own modules
        too_early = number == signal.SIGINT and said.startswith(b"Fatal Python error: init_")
        assert too_early or process.returncode in (0, -number), said
        assert not (directory / "run" / "agent.sock").exists()


class Silent(http.server.BaseHTTPRequestHandler):
    """Answers what it does not understand with 400."""

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


def test_tls_to_a_plain_port_is_said_once_and_collection_goes_on(
    agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An https endpoint that speaks plain http: one line while it runs, every tick is still written."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    plain = environment

    def networked(**settings: object) -> dict[str, str]:
        return plain(**settings) | {
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{server.server_port}",
        }

    monkeypatch.setattr("harness.environment", networked)
    try:
        with nothing_left(), running_agent(agents / "tls") as agent:
            wait_until(lambda: "cannot export" in agent.log.read_text(), "the failed export")
            agent.wait_exports(4)
            running = agent.log.read_text()
            agent.process.send_signal(
                signal.SIGTERM
            )  # not stop(): what was not taken stands in the file twice
            assert agent.process.wait(60) == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    warnings = [line for line in running.splitlines() if " warning " in line]
    (line,) = [line for line in warnings if "cannot export events to" not in line]
    assert "TLS handshake failed, is it a plain-text port?" in line
    assert len(warnings) <= 2  # events go a way of their own, if any happened on the machine


SEND = "import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(bytes(1000)); s.recv(1)"
EVIL_NAMES = {
    b"new\nline": "new\N{REPLACEMENT CHARACTER}line",
    b"\x1b]0;title\x07": "\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}",
    b"\xff\xfe": "\N{REPLACEMENT CHARACTER}" * 2,
    b"over\xe2\x80\xaeride": "over\N{REPLACEMENT CHARACTER}ride",
    b"[red]%s{}": "[red]%s{}",
}


def test_names_that_processes_choose_reach_no_reader_raw(agents: Path, tmp_path: Path) -> None:
    """Line ends, escapes and broken UTF-8 in a program's name: exact bytes, under a harmless name."""
    python = os.fsencode(Path(sys.executable).resolve())
    processes: dict[str, int] = {}
    with running_agent(agents / "names") as agent, socket.create_server(("127.0.0.1", 0)) as server:
        code = SEND.format(port=server.getsockname()[1])
        for raw, shown in EVIL_NAMES.items():
            program = os.fsencode(tmp_path) + b"/" + raw
            shutil.copy(python, program)
            process = subprocess.Popen([program, b"-I", b"-c", code.encode(), b"\xff\x1b[2J\n" * 10_000])
            connection, _ = server.accept()
            with connection:
                left = 1000
                while left:
                    left -= len(connection.recv(left))
            assert process.wait() == 0
            processes[shown] = process.pid
        totals = agent.stop()
    written = agent.otlp.read_bytes().decode("utf-8")  # raises for what is not UTF-8
    assert all(character.isprintable() or character == "\n" for character in written)
    assert {shown: totals.images(pid) for shown, pid in processes.items()} == {
        shown: {shown: 1000} for shown in processes
    }
