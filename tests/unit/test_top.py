# SPDX-License-Identifier: Apache-2.0
"""`kernob top` as it is run: the printed table, the JSON lines, the terminal, and how each ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import select as select_module
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from kernob.config import Settings
from kernob.errors import AgentUnreachableError
from kernob.export.socket import SnapshotServer
from kernob.model import Snapshot
from kernob.ui import top
from tests.unit.fake_agent import BUSY, FAILSAFE_S, HOSTILE, FakeAgent, snapshot

# ---- printed ---------------------------------------------------------------------------------------


def no_agent(_settings: Settings) -> FakeAgentContext:
    raise AssertionError("an agent runs already; a second set of programs must not be loaded")


class FakeAgentContext(FakeAgent):
    """What `kernob.agent.Agent` is to the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.left = False

    def __enter__(self) -> FakeAgentContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True
        self.end()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(socket_path=tmp_path / "run" / "agent.sock")


@pytest.fixture
def agent(settings: Settings) -> Iterator[FakeAgent]:
    """A running agent with traffic, on its socket."""
    fake = FakeAgent()
    fake.standing = snapshot(*BUSY, *HOSTILE, second=100)
    with SnapshotServer(settings.socket_path, fake):
        yield fake
        fake.end()


@pytest.mark.usefixtures("agent")
def test_once(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--once prints one table, without any control character, and nothing on standard error."""
    monkeypatch.setenv("COLUMNS", "80")
    assert top.run_top(settings, start_agent=no_agent, once=True) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    shown = printed.splitlines()
    assert all(line.isprintable() and cell_len(line) <= 80 for line in shown)
    assert shown[0].startswith(" kernob  web-01 ")
    assert shown[5].split() == ["88%", "rsync", "11", "→192.0.2.1:443", "900", "0"]
    assert shown[-1].split() == ["flows", "1-8", "of", "8", "by", "share"]


@pytest.mark.usefixtures("agent")
def test_piped_output_is_printed_once(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is no full screen: one table, of 120 columns, with the limit asked for."""
    assert top.run_top(settings, start_agent=no_agent, limit=2, sort="pid", group="process") == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, shown)) in {119, 120}
    assert shown[-1].split()[:8] == ["processes", "1-2", "of", "8", "+6", "more:", "35", "B/s,"]


@pytest.mark.usefixtures("agent")
def test_output_that_knows_only_ascii(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the output's encoding lacks the signs, plain ones stand for them."""
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert top.run_top(settings, start_agent=no_agent, once=True, filter_text="rsync") == 0
    text = (tmp_path / "out").read_text(encoding="ascii")
    assert ">192.0.2.1:443" in text
    assert "vSHARE" in text


@pytest.mark.usefixtures("agent")
def test_json_once(settings: Settings, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """--json --once prints exactly one document with the documented keys, on one line."""
    assert top.run_top(settings, start_agent=no_agent, once=True, as_json=True) == 0
    printed, errors = capfdbinary.readouterr()
    assert errors == b""
    (line,) = printed.decode().splitlines()
    assert line.isprintable()
    document = json.loads(line)
    known = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs/snapshot-json.md").read_text()))
    assert set(document) <= known
    assert set(document["rows"][0]) <= known
    assert document["rows"][0]["executable"] == "rsync"
    assert document["left_out"]["rows"] == 0


def test_json_per_tick(
    settings: Settings, agent: FakeAgent, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """--json prints one document per tick until the agent ends, which is an error with its own code."""

    def tick_and_end() -> None:
        for second in (101, 102):
            agent.publish(snapshot(second=second), subscribers=1)
        agent.end()

    later = threading.Thread(target=tick_and_end)
    later.start()
    with pytest.raises(AgentUnreachableError, match="went away"):
        top.run_top(settings, start_agent=no_agent, as_json=True)
    later.join()
    documents = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [document["time_unix_ns"] // 10**9 for document in documents] == [100, 101, 102]


def test_without_an_agent_one_is_run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody listens one line says so, an agent runs in this process, and it ends with the screen."""
    own = FakeAgentContext()
    own.standing = snapshot(*BUSY, second=100)
    assert top.run_top(settings, start_agent=lambda _settings: own, once=True) == 0
    printed, errors = capsys.readouterr()
    assert errors.startswith(f"No agent answers on {settings.socket_path}: starting one here; ")
    assert errors.count("\n") == 1
    assert "rsync" in printed
    assert own.left


def test_the_first_tick_of_a_new_agent_is_skipped(
    settings: Settings, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A tick before the first interval is over has no rates yet and is not printed."""
    own = FakeAgentContext()
    own.standing = Snapshot(1, 0, 1.0, "web-01", ())
    feeder = threading.Thread(target=lambda: own.publish(snapshot(*BUSY, second=2), 1))
    feeder.start()
    assert top.run_top(settings, start_agent=lambda _settings: own, once=True, as_json=True) == 0
    feeder.join()
    assert json.loads(capfdbinary.readouterr().out)["time_unix_ns"] == 2 * 10**9


def test_log_lines_stay_off_the_screen(caplog: pytest.LogCaptureFixture) -> None:
    """What the agent logs while the screen stands is written when it closes."""
    with top._logging_held_back():
        logging.getLogger("kernob.agent").warning("a map is full")
        assert caplog.messages == []
    assert caplog.messages == ["a map is full"]


# ---- on a real terminal ----------------------------------------------------------------------------


class Terminal:
    """`kernob top` in a process of its own on a pseudo terminal of 80x24."""

    def __init__(self, settings: Settings, **environment: str) -> None:
        self.parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.modes = termios.tcgetattr(child)
        self.child = child
        self.output = b""
        clean = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernob", "top", "--socket", str(settings.socket_path)],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=clean | {"TERM": "xterm-256color"} | environment,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.child)
        os.close(self.parent)

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + 3 * FAILSAFE_S
        while wanted not in self.output:
            assert time.monotonic() < deadline, self.output[-2000:]
            if select_module.select([self.parent], [], [], 0.1)[0]:
                self.output += os.read(self.parent, 65536)

    def end(self) -> int:
        """Read what is left and return the exit code."""
        deadline = time.monotonic() + 3 * FAILSAFE_S
        while self.process.poll() is None or select_module.select([self.parent], [], [], 0)[0]:
            assert time.monotonic() < deadline, self.output[-2000:]
            if select_module.select([self.parent], [], [], 0.05)[0]:
                self.output += os.read(self.parent, 65536)
        return self.process.returncode


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("way", [b"q", b"\x03", signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_restored(settings: Settings, way: bytes | signal.Signals) -> None:
    """However the screen ends, the exit code is 0 and the terminal is as it was."""
    with Terminal(settings) as terminal:
        terminal.read_until(b"LIVE")
        if isinstance(way, bytes):
            os.write(terminal.parent, way)
        else:
            terminal.process.send_signal(way)
        assert terminal.end() == 0
        assert termios.tcgetattr(terminal.child) == terminal.modes
        assert terminal.output.rindex(b"\x1b[?1049l") > terminal.output.rindex(b"\x1b[?1049h")
        assert terminal.output.rindex(b"\x1b[?25h") > terminal.output.rindex(b"\x1b[?25l")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("no_color", [False, True])
def test_colour(settings: Settings, *, no_color: bool) -> None:
    """With NO_COLOR nothing is coloured; without, only the terminal's own 16 colours are used.

    And on a terminal of ASCII signs that it lacks are others that look like them.
    """
    plain = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    with Terminal(settings, **(plain if no_color else {})) as terminal:
        terminal.read_until(b"LIVE")
        terminal.read_until(b"rsync")
        os.write(terminal.parent, b"q")
        assert terminal.end() == 0
        codes = {
            code
            for found in re.findall(rb"\x1b\[([0-9;]*)m", terminal.output)
            for code in found.split(b";")
            if code
        }
        assert codes >= {b"1", b"7"}
        colours = codes & {b"%d" % code for code in (*range(30, 38), *range(40, 48), 38, 48, *range(90, 108))}
        assert colours == (set() if no_color else {b"32", b"36"})
        assert terminal.output.isascii() == no_color
        assert ((b"vSHARE" in terminal.output) and (b"\\u" not in terminal.output)) == no_color


@pytest.mark.usefixtures("agent")
def test_broken_pipe(settings: Settings) -> None:
    """A reader that has had enough ends it without a word."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "kernob", "top", "--json", "--once", "--socket", str(settings.socket_path)],
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=3 * FAILSAFE_S)
    assert errors == b""
