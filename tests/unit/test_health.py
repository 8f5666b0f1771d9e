# SPDX-License-Identifier: Apache-2.0
"""`kernob health`: 0 for an agent that answers and ticks, else 1 and one line; and what it costs."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernob import cli, health
from kernob.agent import Agent
from kernob.config import DEFAULT_TOML, Settings
from kernob.export.socket import MAX_CLIENTS, SnapshotServer
from tests.unit.fake_agent import FakeAgent, eventually


def served(path: Path, agent: FakeAgent) -> SnapshotServer:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return SnapshotServer(path, agent)


def test_an_agent_that_ticks_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 without a word, also at the limit itself; asking causes no tick."""
    path, agent = tmp_path / "run" / "agent.sock", FakeAgent()
    with served(path, agent):
        assert health.run_health(str(path)) == 0
        agent.age_s = 30.0
        assert health.main({"KERNOB_SOCKET": str(path)}) == 0
        assert cli.main(["health", "--socket", str(path)]) == 0
    assert capsys.readouterr() == ("", "")
    assert agent.intervals == []


def test_an_agent_that_no_longer_ticks_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its socket answers, but says how long ago it last read."""
    path, agent = tmp_path / "run" / "agent.sock", FakeAgent()
    agent.age_s = 31.0
    with served(path, agent):
        assert health.run_health(str(path)) == 1
    assert capsys.readouterr().err == (
        f"kernob: the agent on {path} last read the kernel's counters 31 s ago (limit 30 s)\n"
    )


def test_no_agent_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there, nobody listening, an impossible path, an empty one, a path with a line feed."""
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    paths = (str(tmp_path / "absent"), str(stale), "/" + "x" * 200, "", "/a\0b", "/a\nb\x1b[31m")
    for path in paths:
        assert health.run_health(path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(paths)
    assert all(line.startswith("kernob: no agent answers on ") and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "cannot read the answer"),
        (b"[]\n", "cannot read the answer"),
        (b"[" * 4096, "cannot read the answer"),
        (b'{"v":1,"error":"go\\u001b[2Jaway"}\n', "refused: go?[2Jaway"),
        (b'{"v":1,"pulse":{"age_s":NaN,"limit_s":30}}\n', "last read the kernel's counters nan s ago"),
        (b'{"v":1,"pulse":{"age_s":"x","limit_s":30}}\n', "cannot read the answer"),
        (b'{"v":1,"pulse":[1]}\n', "cannot read the answer"),
    ],
)
def test_whatever_answers_is_judged_in_one_line(
    answer: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another version, garbage, escape sequences, more than fits: exit 1, never a traceback."""
    path = str(tmp_path / "odd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def reply() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        assert health.run_health(path) == 1
        thread.join()
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1


def test_an_agent_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """It listens while it attaches, and when it hangs; patience ends."""
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        assert health.examine(path, 0.05) == f"the agent on {path} does not answer within 0.05 s"


def test_an_agent_with_all_its_screens_is_well(tmp_path: Path) -> None:
    """Who is refused a view because 16 are served already still learns that the agent ticks."""
    path, agent = tmp_path / "run" / "agent.sock", FakeAgent()
    with served(path, agent) as server:
        screens = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS)]
        for screen in screens:
            screen.connect(str(path))
        eventually(lambda: server.client_count == MAX_CLIENTS)
        assert health.examine(str(path)) == ""
        agent.age_s = 99.0
        assert "99 s ago" in health.examine(str(path))
        for screen in screens:
            screen.close()


def test_the_socket_is_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same default and the same sources as everywhere; a broken setting is exit 1 here too."""
    assert Path(health.DEFAULT_SOCKET) == Settings().socket_path
    assert Path(health._DEFAULT_TOML) == DEFAULT_TOML
    file = tmp_path / "kernob.toml"
    file.write_text('socket = "/run/other.sock"\n')
    assert health.socket_of({"KERNOB_CONFIG": str(file)}) == "/run/other.sock"
    assert (
        health.socket_of({"KERNOB_CONFIG": str(file), "KERNOB_SOCKET": "/run/mine.sock"}) == "/run/mine.sock"
    )
    file.write_text('SOCKET = "/run/loud.sock"\n')
    assert health.socket_of({"KERNOB_CONFIG": str(file)}) == "/run/loud.sock"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tomllib", None)  # as in Python 3.10: settings are loaded as everywhere
        assert health.socket_of({"KERNOB_CONFIG": str(file)}) == "/run/loud.sock"
    file.write_text("")
    assert health.socket_of({"KERNOB_CONFIG": str(file)}) == health.DEFAULT_SOCKET
    file.write_text("socket = 3\n")
    assert health.main({"KERNOB_CONFIG": str(file)}) == 1
    assert capsys.readouterr().err.startswith(f"kernob: KERNOB_SOCKET is 3 ({file}): must be ")
    assert cli.main(["health", "--config", str(tmp_path / "absent.toml")]) == 1


def test_three_intervals_and_ten_seconds_are_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's ticks are late; an agent whose ticks hang is found within three of them."""
    monkeypatch.setattr("kernob.agent.check_machine", lambda: None)
    for interval_s, limit_s in ((0.2, 10.0), (10.0, 30.0), (300.0, 900.0)):
        pulse = Agent(Settings(scrape_interval_s=interval_s)).pulse()
        assert pulse.limit_s == limit_s
        assert 0 <= pulse.age_s < limit_s


def test_asking_loads_next_to_nothing(tmp_path: Path) -> None:
    """Every few seconds on every machine: of ours one module, no library, no settings."""
    path = tmp_path / "run" / "agent.sock"
    script = (
        "import sys; before = set(sys.modules); sys.argv[1:] = ['health'];"
        "from kernob.__main__ import main; code = main();"
        "print(sorted({n for n in set(sys.modules) - before if n.startswith(('kernob', 'click', 'logging',"
        " 'dynaconf', 'msgspec', 'numpy', 'rich', 'dataclasses', 'difflib', 'ipaddress'))}));"
        "sys.exit(code)"
    )
    with served(path, FakeAgent()):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"KERNOB_SOCKET": str(path), "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(sorted({"kernob", "kernob.__main__", "kernob.errors", "kernob.health"}))
