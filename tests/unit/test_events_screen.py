# SPDX-License-Identifier: Apache-2.0
"""`kernob events`: from the agent's socket and from the store, on a terminal and into a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernob.cli import main
from kernob.commands.options import KINDS
from kernob.export.socket import SnapshotServer
from kernob.model import EVENT_KINDS, Severity
from kernob.state.journal import Journal
from kernob.state.store import Store
from kernob.ui.events import line, moment
from kernob.view import encode_refusal
from tests.unit.fake_agent import FakeAgent
from tests.unit.tcp_events import event

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KERNOB_SOCKET", str(tmp_path / "run" / "agent.sock"))
    monkeypatch.setenv("KERNOB_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """That of an agent which serves on the socket."""
    store = Store(tmp_path / "state", 1000)
    store.start()
    journal = Journal(store, 1)
    with SnapshotServer(tmp_path / "run" / "agent.sock", FakeAgent(), events=journal):
        yield journal
        journal.close(5)


def stored(tmp_path: Path, *events: Any) -> None:
    store = Store(tmp_path / "state", 1000)
    store.start()
    store.submit(enumerate(events, 1))
    store.close(10)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["events", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_without_an_agent_the_store_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an event: local date and time to the millisecond, severity, kind, sentence."""
    stored(tmp_path, event(1_763_860_387.4129))
    assert run(capsys) == [
        "2025-11-23 02:13:07.412 warn  reset          orders.py (PID 4711) lost its connection to "
        "10.0.0.7:5672: the peer reset it after 1 s idle"
    ]


def test_from_a_running_agent(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    """What it has just noted and what it has stored, oldest first; the last so many."""
    journal.note([event(i) for i in range(1, 300)])
    journal.commit()
    journal.note([event(300)])
    assert len(run(capsys)) == 100
    assert run(capsys, "--limit", "2") == [line(event(299)), line(event(300))]
    assert len(run(capsys, "--since", "1970-01-01T01:00:11")) == 290
    assert len(run(capsys, "--since", "1h")) == 0


def test_filters_reach_the_agent_and_the_store(
    journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--service and --kind, repeated, mean the same for both sources."""
    drop = {"kind": "kernob.tcp.drop", "severity": Severity.ERROR}
    journal.note([event(1), event(2, **drop), event(3, service="web"), event(4, kind="kernob.tcp.stall")])
    asked = (
        ["--service", "web"],
        ["--kind", "drop", "--kind", "stall"],
        ["--service", "o*", "--kind", "reset"],
    )
    from_agent = [run(capsys, *each) for each in asked]
    assert [[text[14:23] for text in lines] for lines in from_agent] == [
        ["00:03.000"], ["00:02.000", "00:04.000"], ["00:01.000"],
    ]  # fmt: skip
    journal.close(10)
    os.environ["KERNOB_SOCKET"] = str(tmp_path / "nobody.sock")
    assert [run(capsys, *each) for each in asked] == from_agent


def test_json_is_one_document_a_line_with_every_field(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is known, in the words of docs/events.md."""
    journal.note([event(1.5)])
    (document,) = map(json.loads, run(capsys, "--json"))
    assert document["v"] == 1
    assert document["time_unix_ns"] == 1_500_000_000
    assert (document["kind"], document["severity"], document["role"]) == (
        "kernob.tcp.reset",
        "warn",
        "client",
    )
    assert (document["idle"], document["gap_s"]) == (True, 1.0)
    page = (ROOT / "docs" / "store.md").read_text()
    assert all(f"`{key}`" in page for key in document if key != "v")


def test_following_prints_what_comes_and_ends_with_the_agent(
    tmp_path: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """First what was, then each event as it happens; an agent that ends is exit code 4."""
    journal.note([event(1)])
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["events", "-f", "--json"])))
    thread.start()
    printed = ""
    for second in (2, 3):
        until = time.monotonic() + 10
        while f'"time_unix_ns":{second - 1}000000000' not in printed:
            assert time.monotonic() < until
            printed += capsys.readouterr().out
            time.sleep(0.01)
        journal.note([event(second)])
    journal.close(5)
    thread.join(10)
    assert codes == [4]
    out = capsys.readouterr()
    assert "went away" in out.err
    assert [json.loads(text)["time_unix_ns"] // 10**9 for text in (printed + out.out).splitlines()] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--since", "yesterday"], 2, "'yesterday' must be a time ago (90s, 10m"),
        (["--since", "10x"], 2, "must be a time ago"),
        (["--kind", "resets"], 2, "'resets' is not one of"),
        (["--limit", "0"], 2, "0 is not in the range"),
        (["--follow"], 4, "no agent answers on"),
        ([], 1, "kernob.db: no agent runs, and none has stored anything there yet"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exit code and one line on standard error; nothing on standard output."""
    assert main(["events", *arguments]) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1
    assert says in out.err


def test_an_agent_without_events_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The screen's agent, for example, keeps none."""
    with SnapshotServer(tmp_path / "run" / "agent.sock", FakeAgent()):
        assert main(["events"]) == 4
    assert "refused: this agent keeps no events" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "told"),
    [(encode_refusal("too many clients") + b"\n", "refused: too many clients"), (b"", "went away")],
)
def test_an_agent_that_hangs_up_before_it_is_asked(
    says: bytes, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it said is told, and that it went away; it is no reader of ours that left."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(says)
    monkeypatch.setattr("kernob.ui.events.agent_listens", lambda _path: True)
    monkeypatch.setattr("kernob.ui.events.open_socket", lambda _path: ours)
    assert main(["events"]) == 4
    out = capsys.readouterr()
    assert (out.out, len(out.err.splitlines())) == ("", 1)
    assert told in out.err


@pytest.mark.parametrize(
    "request_line",
    [
        '{"want": "events", "limit": 0}',
        '{"want": "events", "kinds": "x"}',
        '{"want": "events", "since_unix_ns": "x"}',
        '{"want": "events", "v": 2}',
        '{"want": ["events"]}',
    ],
)
def test_a_malformed_request_is_refused(journal: Journal, tmp_path: Path, request_line: str) -> None:
    """With a reason, and the connection ends."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "run" / "agent.sock"))
        client.sendall(request_line.encode() + b"\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert "not a valid request" in json.loads(answer)["error"]


def test_followers_that_leave_are_forgotten(journal: Journal, tmp_path: Path) -> None:
    """Their threads end although nothing happens."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "run" / "agent.sock"))
        client.sendall(b'{"want": "events", "follow": true}\n')
        journal.note([event(1)])
        assert client.recv(4096).startswith(b'{"v":1,"time_unix_ns":1000000000')
    until = time.monotonic() + 10
    while any(thread.name == "kernob-client" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)


def in_terminal(columns: int, *arguments: str, **environ: str) -> str:
    """What `kernob events` paints on a terminal of that width."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kernob", "events", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environ},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    painted = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        painted += part
    os.close(leader)
    assert process.wait(20) == 0
    return painted.decode().replace("\r\n", "\n")


def test_eighty_columns(tmp_path: Path) -> None:
    """Sentences are wrapped beside their time; a new day has a line; no line is too long; no colour asked."""
    long = event(1_763_860_387.5, body="worker (PID 1) " + "could not connect " * 6 + "x" * 60)
    stored(tmp_path, event(1_763_850_000), long, event(1_763_860_388.25, severity=Severity.ERROR))
    painted = in_terminal(80, NO_COLOR="1")
    assert "\x1b[3" not in painted
    lines = re.sub(r"\x1b\[[0-9;]*m", "", painted).splitlines()
    assert max(map(len, lines)) <= 80
    assert [each for each in lines if each.startswith("20")] == ["2025-11-22 CET", "2025-11-23 CET"]
    assert lines[1].startswith("23:20:00.000  reset           orders.py (PID 4711) lost its connection to")
    assert lines[2].startswith(" " * 30)


def test_colour_repeats_the_severity_on_a_terminal_only(tmp_path: Path) -> None:
    """Yellow for warnings; nothing of that in a pipe."""
    stored(tmp_path, event(1))
    assert "\x1b[33mreset" in in_terminal(100)
    done = subprocess.run(
        [sys.executable, "-m", "kernob", "events"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout


def test_nothing_found_says_so_on_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets nothing."""
    stored(tmp_path)
    assert in_terminal(80).strip() == "No such events."
    assert run(capsys) == []


def test_ctrl_c_and_a_reader_that_leaves_end_it_quietly(journal: Journal) -> None:
    """Ctrl-C: 0. A closed pipe: 1, as for every command. Neither says anything."""
    journal.note([event(i) for i in range(1000)])
    command = [sys.executable, "-m", "kernob", "events", "--follow", "--limit", "1000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    # whoever started the tests in the background may have had interrupts ignored
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _out, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, b"")
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        for _ in range(100):
            journal.note([event(i) for i in range(5)])
            if process.poll() is not None:
                break
            time.sleep(0.05)
        assert (process.wait(20), process.stderr.read()) == (1, b"")


def test_hostile_text_cannot_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever filled the file: control characters are shown as replaced, and lines are not broken."""
    stored(tmp_path, event(1, body="a\x1b[2J\nb\u202ec" + "y" * 5000, kind="kernob.tcp.re\x07set"))
    (text,) = run(capsys)
    assert text.isprintable()
    assert len(text) < 1200
    assert in_terminal(80).count("\x1b[2J") == 0


MIDNIGHT = 1_795_388_400  # 2026-11-23 in Berlin
NOW = MIDNIGHT + 2 * 3600 + 13 * 60 + 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - 90),
        ("10m", NOW - 600),
        (" 2h ", NOW - 7200),
        ("3d", NOW - 3 * 86400),
        ("1w", NOW - 7 * 86400),
        ("2026-11-23T02:00", MIDNIGHT + 7200),
        ("2026-11-23 02:00:01.5", MIDNIGHT + 7201.5),
        ("2026-11-22", MIDNIGHT - 86400),
        ("2026-11-23T01:00:00Z", MIDNIGHT + 7200),
        ("2026-11-23T01:00:00+00:00", MIDNIGHT + 7200),
        ("02:00", MIDNIGHT + 7200),
        ("23:50", MIDNIGHT - 600),
    ],
)
def test_moments(text: str, expected: float) -> None:
    """So long ago, or a local time; a time of day that is still to come was yesterday's."""
    assert moment(text, NOW) == round(expected * 1e9)


NO_MOMENTS = ("", "2", "h", "-2h", "2 h", "\u0661h", "25:00", "2026-13-01", "now", "9" * 40 + "h")


@pytest.mark.parametrize("text", NO_MOMENTS)
def test_no_moments(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError):
        moment(text, NOW)


def test_every_kind_has_a_short_name_of_its_own() -> None:
    """The last word of a kind is what --kind takes."""
    assert len(KINDS) == len(EVENT_KINDS)
