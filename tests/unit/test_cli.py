# SPDX-License-Identifier: Apache-2.0
"""The command line: one clear line and the right exit code for everything that goes wrong."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernob import __version__, cli, config, errors
from kernob.commands import options
from kernob.config import Settings, load_settings
from kernob.ui import settings as screen

COMMANDS = ("run", "top", "doctor", "config")
ASKERS = (*COMMANDS, "health")


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of this machine; logging and signals are put back as pytest had them."""
    monkeypatch.setattr(config, "DEFAULT_TOML", tmp_path / "etc" / "kernob.toml")
    for name in os.environ:
        if name.startswith(("KERNOB_", "OTEL_")):
            monkeypatch.delenv(name)
    root, ours = logging.getLogger(), logging.getLogger("kernob")
    before = (root.handlers[:], root.level, ours.level)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.handlers, root.level, ours.level = before[0], before[1], before[2]
    logging.captureWarnings(capture=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Put a module in the place of one that a command imports."""
    fake = types.ModuleType(module)
    for name, function in functions.items():
        setattr(fake, name, function)
    monkeypatch.setitem(sys.modules, module, fake)


def one_line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: one line that says whose it is; nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("kernob: ")
    return captured.err.removeprefix("kernob: ").rstrip("\n")


@pytest.mark.parametrize("command", [[], *([name] for name in ASKERS)])
def test_every_help_has_examples_and_exit_codes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """--help and -h say how to call it and what each exit code means."""
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:\n" in text
    for error in (errors.KernobError, errors.ConfigError, errors.PreconditionError, errors.KernelError):
        assert f"\n    {error.exit_code}    " in text
    assert cli.main([*command, "-h"]) == 0
    assert capsys.readouterr().out == text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints it and ends."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kernob {__version__}\n"


def test_without_a_command_the_help_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that forgot the command must not take the help for output."""
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: kernob")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["top", "--bogus"],
        ["top", "--sort", "bogus"],
        ["top", "--by", ""],
        ["top", "extra"],
        *(["top", "--limit", text] for text in ("0", "-1", "20001", "x", "", "nan", "1.5")),
        *(["top", "--interval", text] for text in ("nan", "inf", "0", "-1", "1e9", "", "x", "0.19", "301")),
        ["run", "--otlp-file"],
        ["config", "--config", "/nonexistent.toml"],
        ["config", "--config", ""],
        ["top", "--socket", ""],
        ["top", "--socket", "relative"],
        ["top", "--socket", "/" + "x" * 108],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with an option, nothing is started."""
    assert cli.main(arguments) == 2
    one_line_of(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_setting_ends_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 before anything attaches."""
    monkeypatch.setenv("KERNOB_SCRAPE_INTERVALL", "1")
    assert cli.main([command]) == 2
    assert one_line_of(capsys) == (
        "KERNOB_SCRAPE_INTERVALL (environment) is not a setting; did you mean KERNOB_SCRAPE_INTERVAL?"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.KernobError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.PreconditionError("x"), 3),
        (errors.AgentUnreachableError("x"), 4),
        (errors.KernelError("x"), 5),
        (errors.ProgramLoadError("x"), 5),
    ],
)
def test_errors_of_ours_end_with_their_exit_code(
    error: errors.KernobError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is the line."""

    def run_agent(settings: Settings, otlp_file: Path | None) -> int:
        raise error

    stand_in(monkeypatch, "kernob.agent", run_agent=run_agent)
    assert cli.main(["run"]) == code
    assert one_line_of(capsys) == "x"


def test_line_ends_and_escapes_in_a_message_stay_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verifier's log or a process name cannot forge lines or reach the terminal."""

    def run_agent(settings: Settings, otlp_file: Path | None) -> int:
        raise errors.ProgramLoadError("refused:\nR1 type=inv\n\n\x1b[31mbye")

    stand_in(monkeypatch, "kernob.agent", run_agent=run_agent)
    assert cli.main(["run"]) == 5
    assert one_line_of(capsys) == "refused: | R1 type=inv | \\x1b[31mbye"


def test_a_fault_of_kernob_is_one_line_and_exit_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback comes with KERNOB_LOG_LEVEL=debug, and the line says so."""

    def run_agent(settings: Settings, otlp_file: Path | None) -> int:
        raise ZeroDivisionError("by zero")

    stand_in(monkeypatch, "kernob.agent", run_agent=run_agent)
    assert cli.main(["run"]) == 70
    line = "ZeroDivisionError: by zero (a fault in Kernob; KERNOB_LOG_LEVEL=debug shows where)"
    assert one_line_of(capsys) == line
    monkeypatch.setenv("KERNOB_LOG_LEVEL", "debug")
    assert cli.main(["run"]) == 70
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith(f"kernob: {line}\n")


def test_an_interrupt_is_exit_130_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in a client is no error."""

    def run_doctor(settings: Settings, as_json: bool, examine: object) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "kernob.ui.doctor", run_doctor=run_doctor)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(("command", "code"), [("run", -signal.SIGINT), ("events", 130)])
def test_an_interrupt_before_the_command_begins(command: str, code: int) -> None:
    """The agent ends by it, as by SIGTERM; a client has its exit code for it. Neither says anything."""
    script = (
        "import signal, sys, click\n"
        "from kernob.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "click.Group.main = lambda *_, **__: signal.raise_signal(signal.SIGINT)\n"
        f"sys.argv[1:] = [{command!r}]\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_well_when_stopped_before_the_agent_is_there(number: signal.Signals) -> None:
    """Loading takes part of a second; a signal in it means the same as later: exit 0, no output.

    In a process of its own: it ends at once, and would take the tests with it, as if all had passed.
    """
    script = (
        "import signal, sys, kernob.config\n"
        "from kernob import cli\n"
        f"kernob.config.load_settings = lambda *_: signal.raise_signal({int(number)})\n"
        "cli.main(['run'])\n"
        "print('went on')\n"
        "sys.exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_run_hands_its_options_to_the_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And returns the agent's exit code."""
    seen: list[tuple[Settings, Path | None]] = []

    def run_agent(settings: Settings, otlp_file: Path | None) -> int:
        seen.append((settings, otlp_file))
        return 17

    stand_in(monkeypatch, "kernob.agent", run_agent=run_agent)
    file = tmp_path / "kernob.toml"
    file.write_text("scrape_interval = 2\n")
    assert cli.main(["run", "--config", str(file), "--otlp-file", "/tmp/x.jsonl"]) == 17
    [(settings, otlp_file)] = seen
    assert settings.scrape_interval_s == 2
    assert otlp_file == Path("/tmp/x.jsonl")


def test_top_hands_its_options_to_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is a setting; the rest is the screen's."""
    seen: list[tuple[Settings, dict[str, Any]]] = []

    def run_top(settings: Settings, *, start_agent: object, **options: Any) -> int:
        assert callable(start_agent)
        seen.append((settings, options))
        return 0

    stand_in(monkeypatch, "kernob.ui.top", run_top=run_top)
    assert cli.main(["top"]) == 0
    arguments = ["--once", "--json", "--interval", "0.5", "--sort", "tx", "--by", "service", "--limit", "7"]
    arguments += ["--filter", "a b"]
    assert cli.main(["top", *arguments, "--socket", "/tmp/k.sock"]) == 0
    defaults = {
        "once": False,
        "as_json": False,
        "interval_s": 1.0,
        "group": "flow",
        "sort": "rate",
        "filter_text": "",
        "limit": None,
    }
    assert seen[0][1] == defaults
    assert seen[1][0].socket_path == Path("/tmp/k.sock")
    assert seen[1][1] == {
        "once": True,
        "as_json": True,
        "interval_s": 0.5,
        "group": "service",
        "sort": "tx_rate",
        "filter_text": "a b",
        "limit": 7,
    }


def test_sort_and_by_offer_what_a_view_can_do() -> None:
    """The words of the command line are those of kernob.view."""
    from kernob.view import Group, Sort

    assert set(options.SORTS.values()) == {sort.value for sort in Sort}
    assert set(options.GROUPS) == {group.value for group in Group}


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in ASKERS), ["config"]])
def test_help_and_config_load_nothing_heavy(arguments: list[str]) -> None:
    """A screen's help needs neither BCC, gRPC, numpy nor the agent."""
    script = (
        "import sys; from kernob.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'bcc', 'grpc', 'numpy', 'requests', 'textual', 'opentelemetry', 'google', 'kernob.agent'};"
        "sys.exit(repr(heavy & set(sys.modules)) if code or heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_fault() -> None:
    """`kernob config | head -1` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "kernob", "config"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"], ["--help"]])
def test_output_that_has_no_room_is_one_line(arguments: list[str]) -> None:
    """A full disk is no fault of Kernob's: exit 1."""
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "kernob", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.stderr == "kernob: cannot write the output: No space left on device\n"
    assert result.returncode == 1


def test_streams_that_the_caller_closed_are_no_fault() -> None:
    """As `kernob config <&- >&- 2>&-` from a shell."""
    close = "import os; [os.close(number) for number in (0, 1, 2)];"
    command = f"{close} os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'kernob', 'config'])"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_config_shows_every_setting_with_value_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One row for each field, in the unit it is set in; the variable that won where it is another one."""
    monkeypatch.setenv("KERNOB_MAX_FLOWS", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2500")
    file = tmp_path / "kernob.toml"
    file.write_text('interfaces = ["eth0", "wg0"]\n')
    assert cli.main(["config", "--config", str(file), "--json"]) == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == len(load_settings({}).origin)
    assert rows["KERNOB_MAX_FLOWS"]["value"] == 100
    assert rows["KERNOB_MAX_FLOWS"]["source"] == "environment KERNOB_MAX_FLOWS"
    assert rows["KERNOB_INTERFACES"] == {
        "setting": "KERNOB_INTERFACES",
        "value": ["eth0", "wg0"],
        "source": str(file),
    }
    assert rows["OTEL_EXPORTER_OTLP_TIMEOUT"]["value"] == 2500
    assert rows["KERNOB_BTF"]["value"] is None
    assert cli.main(["config", "--config", str(file)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["SETTING", "VALUE", "SOURCE"]
    assert ["KERNOB_MAX_FLOWS", "100", "flows", "environment"] in lines
    assert ["KERNOB_BTF", "-", "default"] in lines
    (timeout,) = (line for line in lines if line[0] == "OTEL_EXPORTER_OTLP_TIMEOUT")
    assert timeout[1:] == ["2500", "milliseconds", "environment", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"]
    assert len(lines) == len(rows) + 1


def test_config_masks_secrets(tmp_path: Path) -> None:
    """Header values, the client's key and a password in the endpoint never leave."""
    key = tmp_path / "hidden-key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    settings = load_settings(
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hidden,x-scope=hidden",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://hidden:hidden@collector:4318",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(key),
        }
    )
    rows = {row.setting: row.value for row in screen.rows(settings)}
    assert rows["OTEL_EXPORTER_OTLP_HEADERS"] == {"authorization": "***", "x-scope": "***"}
    assert rows["OTEL_EXPORTER_OTLP_CLIENT_KEY"] == "***"
    assert rows["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://***@collector:4318/v1/metrics"
    for text in (screen.as_json(settings), screen.as_table(settings)):
        assert text.replace("hidden-key.pem", "", 2).count("hidden") == 0  # metrics and logs
