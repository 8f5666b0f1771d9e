# SPDX-License-Identifier: Apache-2.0
"""What load_settings accepts, and the one line it raises for everything else."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernob import config
from kernob.config import SETTINGS, OtlpSettings, Setting, Settings, load_settings
from kernob.config_values import Flag, Name, Number, Numbers, PathName, ResourceAttributes, Word, Words
from kernob.errors import ConfigError

OURS = [setting for setting in SETTINGS if setting.variable.startswith("KERNOB_")]
OTELS = [setting for setting in SETTINGS if setting.variable.startswith("OTEL_")]
NUMBERS = [setting for setting in SETTINGS if isinstance(setting.kind, Number)]


@pytest.fixture(autouse=True)
def no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed /etc/kernob/kernob.toml must not reach these tests."""
    monkeypatch.setattr(config, "DEFAULT_TOML", tmp_path / "etc" / "kernob.toml")


def name(setting: Setting) -> str:
    return setting.variable


def refusal(environ: dict[str, str], toml: Path | None = None, **overrides: Any) -> str:
    """The one line with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ, toml, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 400
    assert caught.value.exit_code == 2
    return message


def wrong(setting: Setting) -> list[str]:
    """Texts that this setting's kind must refuse, whatever the setting."""
    kind = setting.kind
    if isinstance(kind, Number):
        past = [str(int(kind.high) + 1), "0", "-1", "9" * 400, "1e308", "1e999", "-1e999"]
        return [
            "abc",
            "nan",
            "inf",
            "-inf",
            "1_0",
            "0x10",
            "\u0661\u0660",
            "10s",
            "1,5",
            "1 0",
            "\x00",
            *past,
        ]
    if isinstance(kind, PathName):
        return ["relative/path", "-1", "/" + "x" * 5000, "/a\x00b"]
    if isinstance(kind, ResourceAttributes):
        return ["abc", "=x", "a=1,b", "a=%zz", "a=%ff", "-1"]
    if isinstance(kind, Name):
        return ["two\nlines", "x" * 256, "\x1b[31m"]
    if isinstance(kind, Words):
        return ["a/b", "x" * 300, "tp_btf,,fentry", "\x1b[31m/"]
    if isinstance(kind, (Flag, Word)):
        return ["abc", "-1", "9" * 400, "2", "nan", "true,false", "\x1b[31m"]
    return ["abc", "-1", "x" * 300, "a=%zz", "http://", "\x1b[31m", "\x00"]


@pytest.mark.parametrize(("setting", "text"), [(s, text) for s in SETTINGS for text in wrong(s)])
def test_wrong_type_negative_and_huge_values_are_refused_in_one_line(setting: Setting, text: str) -> None:
    """A value of the wrong kind, negative or huge names the variable, the value and what would be valid."""
    message = refusal({setting.variable: text})
    assert message.startswith(f"{setting.variable} is ")
    assert f"(environment): must be {setting.kind.expects}" in message
    if setting.secret:
        assert "is ***" in message
        assert text not in message


@pytest.mark.parametrize("setting", [s for s in OURS if not isinstance(s.kind, Words | Numbers)], ids=name)
@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_kernob_variable_is_refused(setting: Setting, text: str) -> None:
    """Empty is no number, path, word or truth value."""
    assert refusal({setting.variable: text}).startswith(f"{setting.variable} is {text!r} (environment)")


@pytest.mark.parametrize("setting", [s for s in OURS if isinstance(s.kind, Words | Numbers)], ids=name)
def test_an_empty_list_is_a_list(setting: Setting) -> None:
    """A list may be empty."""
    assert getattr(load_settings({setting.variable: ""}), setting.field) == ()


@pytest.mark.parametrize("setting", OTELS, ids=name)
def test_an_empty_otel_variable_counts_as_unset(setting: Setting) -> None:
    """OpenTelemetry rules that an empty variable is the same as none."""
    settings = load_settings({setting.variable: ""})
    assert settings == Settings()
    assert set(settings.origin.values()) == {"default"}


_FITTING = (
    {"KERNOB_SCORE_WINDOW": "60", "KERNOB_SCORE_BUCKET": "0.2", "KERNOB_SCORE_HALF_LIFE": "0.2"},
    {"KERNOB_SCORE_WINDOW": "86400", "KERNOB_SCORE_BUCKET": "3600"},
)
"""What a score's settings at their lowest and highest are sound with."""


@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_every_number_takes_its_bounds_and_nothing_beyond(setting: Setting) -> None:
    """Both ends of a range are valid; the next number outside is not."""
    kind = setting.kind
    assert isinstance(kind, Number)
    step = 1 if kind.whole else 0.1
    for bound, beyond in ((kind.low, kind.low - step), (kind.high, kind.high + step)):
        environ = {setting.variable: f"{bound:.15g}"}
        if setting.variable == "KERNOB_AGGREGATION_WINDOW":
            environ["KERNOB_SCRAPE_INTERVAL"] = "0.2"
        if setting.variable.startswith("KERNOB_SCORE_"):
            environ = _FITTING[bound == kind.high] | environ
        value: Any = load_settings(environ)
        for part in setting.field.split("."):
            value = getattr(value, part)
        assert value == pytest.approx(bound * kind.scale, rel=1e-15)
        assert isinstance(value, int if kind.whole else float)
        assert f"from {kind.low:.15g} to {kind.high:.15g}" in refusal({setting.variable: f"{beyond:.15g}"})


@pytest.mark.parametrize("setting", OURS, ids=name)
@pytest.mark.parametrize("literal", ["{}", "[[]]", "[1]", "nan", "-inf", "-1", "1979-05-27", '"/\\u0000"'])
def test_a_toml_value_of_the_wrong_type_is_refused(setting: Setting, literal: str, tmp_path: Path) -> None:
    """The line names the variable, the value and the file."""
    if isinstance(setting.kind, Numbers) and literal == "{}":
        return  # an empty table is one
    file = tmp_path / "kernob.toml"
    file.write_text(f"{setting.toml_key} = {literal}\n")
    message = refusal({}, file)
    assert message.startswith(f"{setting.variable} is ")
    assert str(file) in message


@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_a_toml_truth_value_is_no_number(setting: Setting, tmp_path: Path) -> None:
    """Python's True is 1; a setting's true is not."""
    file = tmp_path / "kernob.toml"
    file.write_text(f"{setting.toml_key} = true\n")
    assert "is True" in refusal({}, file)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("KERNOB_SCRAPE_INTERVALL", "KERNOB_SCRAPE_INTERVAL"),
        ("KERNOB_SCRAPE", "KERNOB_SCRAPE_INTERVAL"),
        ("KERNOB_LOGLEVEL", "KERNOB_LOG_LEVEL"),
        ("KERNOB_CONFIG_FILE", "KERNOB_CONFIG"),
        ("KERNOB_MAX_SOCKET", "KERNOB_MAX_SOCKETS"),
    ],
)
def test_an_unknown_variable_names_the_nearest_right_one(variable: str, nearest: str) -> None:
    """A misspelt variable is refused, not ignored."""
    assert refusal({variable: "1"}) == f"{variable} (environment) is not a setting; did you mean {nearest}?"


def test_an_unknown_variable_without_a_near_one_points_to_the_list() -> None:
    """Escape sequences in its name do not reach the terminal."""
    message = refusal({"KERNOB_\x1b[2J~~~~~~~~~~~~~~~~~~~~~~": "1"})
    assert message.endswith("is not a setting; docs/configuration.md lists all")
    assert "\\x1b[2J" in message


def test_unknown_toml_keys_name_the_nearest_right_one(tmp_path: Path) -> None:
    """Both at the top and in [otel]."""
    file = tmp_path / "kernob.toml"
    file.write_text("scrape_intervall = 5\n")
    assert refusal({}, file) == f"scrape_intervall ({file}) is not a setting; did you mean scrape_interval?"
    file.write_text('[otel]\nexporter_otlp_endpiont = "http://collector:4318"\n')
    nearest = "otel.exporter_otlp_endpoint"
    assert (
        refusal({}, file) == f"otel.exporter_otlp_endpiont ({file}) is not a setting; did you mean {nearest}?"
    )
    file.write_text("otel = 3\n")
    assert refusal({}, file) == f"otel is 3 ({file}): must be a table, [otel]"
    file.write_text("[scrape]\ninterval = 3\n")
    assert "scrape " in refusal({}, file)


@pytest.mark.parametrize(
    "content", [b"a = ", b"a = 1\na = 2", b"\xff\xfe", b"= 3", b"a = [" * 5000, b"x = " + b"9" * 5000]
)
def test_malformed_toml_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    """What cannot be parsed says which file, in one line."""
    file = tmp_path / "kernob.toml"
    file.write_bytes(content)
    assert str(file) in refusal({}, file)


def test_a_configuration_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file named by the user must be there and be a .toml file."""
    absent = tmp_path / "absent.toml"
    assert refusal({}, absent) == f"--config is '{absent}': cannot be read: No such file or directory"
    assert refusal({"KERNOB_CONFIG": str(absent)}).startswith(f"KERNOB_CONFIG is '{absent}': cannot be read")
    assert refusal({"KERNOB_CONFIG": ""}) == "KERNOB_CONFIG is '': must be the path of a .toml file"
    assert "must be the path of a .toml file" in refusal({}, tmp_path / "kernob.yaml")
    directory = tmp_path / "directory.toml"
    directory.mkdir()
    assert refusal({}, directory).endswith("cannot be read: not a file")


def test_without_anything_every_default_holds() -> None:
    """An empty environment gives Settings() and says so of every field."""
    settings = load_settings({"PATH": "/bin", "kernob_scrape_interval": "abc"})
    assert settings == Settings()
    names = {f.name for f in dataclasses.fields(Settings)} - {"otlp", "otlp_logs", "origin"}
    names |= {
        f"{signal}.{f.name}" for f in dataclasses.fields(OtlpSettings) for signal in ("otlp", "otlp_logs")
    }
    names -= {"otlp_logs.export_interval_s"}
    assert dict(settings.origin) == dict.fromkeys(names, "default")


def test_command_line_comes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    """Each layer covers the ones below it, and the origin says which one won."""
    file = tmp_path / "kernob.toml"
    file.write_text('scrape_interval = 1\nmax_flows = 100\nmax_sockets = 200\nsocket = "/tmp/f.sock"\n')
    environ = {"KERNOB_CONFIG": str(file), "KERNOB_MAX_FLOWS": "101", "KERNOB_SOCKET": "/tmp/e.sock"}
    settings = load_settings(environ, None, {"socket_path": Path("/tmp/c.sock")})
    assert (settings.scrape_interval_s, settings.max_sockets, settings.max_flows) == (1.0, 200, 101)
    assert settings.socket_path == Path("/tmp/c.sock")
    assert settings.origin["socket_path"] == "command line"
    assert settings.origin["max_flows"] == "environment KERNOB_MAX_FLOWS"
    assert settings.origin["max_sockets"] == str(file)
    assert settings.origin["max_processes"] == "default"


def test_a_command_line_value_is_checked_like_any_other() -> None:
    """The line says where the value stood."""
    message = refusal({}, None, scrape_interval_s=0)
    assert (
        message == "KERNOB_SCRAPE_INTERVAL is 0 (command line): must be a number of seconds from 0.2 to 300"
    )


def test_the_window_is_the_scrape_interval_or_a_whole_multiple_of_it() -> None:
    """Anything else would show rates over parts of a tick."""
    assert load_settings({"KERNOB_SCRAPE_INTERVAL": "2.5"}).aggregation_window_s == 2.5
    both = {"KERNOB_SCRAPE_INTERVAL": "0.3", "KERNOB_AGGREGATION_WINDOW": "0.9"}
    assert load_settings(both).aggregation_window_s == 0.9
    for window in ("15", "5", "10.001", "0.2"):
        message = refusal({"KERNOB_AGGREGATION_WINDOW": window})
        assert message == (
            f"KERNOB_AGGREGATION_WINDOW is '{window}' (environment): "
            "must be a whole multiple of the scrape interval (10 s), at most 3600 s"
        )


def test_values_are_never_evaluated(tmp_path: Path) -> None:
    """dynaconf's @tokens, includes and merges mean nothing in our values."""
    assert "'@int 5'" in refusal({"KERNOB_SCRAPE_INTERVAL": "@int 5"})
    secret = tmp_path / "secret"
    secret.write_text("5")
    assert "'@read_file" in refusal({"KERNOB_SCRAPE_INTERVAL": f"@read_file {secret}"})
    named = load_settings({"OTEL_SERVICE_NAME": "@format {env[PATH]}"})
    assert dict(named.resource_attributes)["service.name"] == "@format {env[PATH]}"
    other = tmp_path / "other.toml"
    other.write_text("scrape_interval = 7\n")
    file = tmp_path / "kernob.toml"
    file.write_text(f'dynaconf_include = ["{other}"]\n')
    assert refusal({}, file).startswith("dynaconf_include (")
    (tmp_path / "kernob.local.toml").write_text("scrape_interval = 7\n")
    file.write_text("max_flows = 99\n")
    assert load_settings({}, file).scrape_interval_s == 10


def test_dynaconfs_own_environment_variables_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A settings file that another program's variables name is not ours."""
    other = tmp_path / "other.toml"
    other.write_text('KERNOB_SCRAPE_INTERVAL = 7\nscrape_interval = 8\nsocket = "/x"\n')
    monkeypatch.setenv("SETTINGS_FILE_FOR_DYNACONF", str(other))
    monkeypatch.setenv("INCLUDES_FOR_DYNACONF", f'["{other}"]')
    monkeypatch.setenv("MERGE_ENABLED_FOR_DYNACONF", "true")
    monkeypatch.setenv("KERNOB_MAX_FLOWS", "77")
    assert load_settings({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("KERNOB_PROCESS_FLOWS", "Off", "process_flows", False),
        ("KERNOB_BPF_STATS", " 1 ", "bpf_stats", True),
        ("KERNOB_LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("KERNOB_INTERFACES", "eth0, wg0,eth0", "interfaces", ("eth0", "wg0")),
        ("KERNOB_STRATEGIES_OFF", "fentry,btf", "strategies_off", ("fentry", "btf")),
        ("KERNOB_SCRAPE_INTERVAL", "2.5e0", "scrape_interval_s", 2.5),
        ("KERNOB_BTF", __file__, "btf_path", Path(__file__)),
        ("KERNOB_PROC_ROOT", "/proc/self", "proc_root", Path("/proc/self")),
        ("KERNOB_SOCKET", "/" + "s" * 106, "socket_path", Path("/" + "s" * 106)),
        (
            "KERNOB_SCORE_WEIGHTS",
            "latency=0, stability=1",
            "score_weights",
            (("latency", 0), ("stability", 1)),
        ),
        ("KERNOB_SCORE_OBJECTIVES", "Db.example=250", "score_objectives", (("db.example", 0.25),)),
        ("KERNOB_LONG_POLL", "events.example,10.0.0.1", "long_poll", ("events.example", "10.0.0.1")),
    ],
)
def test_values_mean_what_they_say(variable: str, text: str, field: str, value: object) -> None:
    """Each kind, in the form it has in an environment."""
    assert getattr(load_settings({variable: text}), field) == value


def test_paths_that_must_exist_are_looked_at(tmp_path: Path) -> None:
    """A BTF file, a /proc and a socket path are refused before anything starts."""
    assert "must be the absolute path of a directory" in refusal({"KERNOB_PROC_ROOT": "/nonexistent"})
    assert "must be the absolute path of a readable file" in refusal({"KERNOB_BTF": str(tmp_path)})
    assert "at most 107 bytes" in refusal({"KERNOB_SOCKET": "/" + "s" * 107})
    assert "at most 107 bytes" in refusal({"KERNOB_SOCKET": "/" + "ü" * 60})


def test_lists_and_tables_may_stand_in_the_file(tmp_path: Path) -> None:
    """TOML arrays are lists; headers and resource attributes may be tables."""
    file = tmp_path / "kernob.toml"
    file.write_text(
        'interfaces = ["eth0", "eth1"]\nstrategies_off = "kprobe"\nprocess_flows = false\n'
        '[otel]\nexporter_otlp_headers = { Authorization = "Bearer a,b=c" }\n'
        'resource_attributes = { "deployment.environment.name" = "prod, north" }\n'
    )
    settings = load_settings({}, file)
    assert settings.interfaces == ("eth0", "eth1")
    assert settings.strategies_off == ("kprobe",)
    assert settings.process_flows is False
    assert settings.otlp.headers == (("authorization", "Bearer a,b=c"),)
    assert settings.resource_attributes == (
        ("service.name", "kernob"),
        ("deployment.environment.name", "prod, north"),
    )
    assert settings.origin["otlp.headers"] == str(file)


def test_the_default_file_is_read_when_it_is_there() -> None:
    """It needs no naming, and may be absent."""
    config.DEFAULT_TOML.parent.mkdir()
    config.DEFAULT_TOML.write_text("max_flows = 55\n")
    settings = load_settings({})
    assert settings.max_flows == 55
    assert settings.origin["max_flows"] == str(config.DEFAULT_TOML)


def test_the_documentation_lists_every_setting() -> None:
    """docs/configuration.md has a row for each variable, with its default and range."""
    page = Path(__file__).parents[2].joinpath("docs", "configuration.md").read_text()
    rows = set(re.findall(r"^\| `([A-Z_]+)`", page, flags=re.MULTILINE))
    general = {s.variable for s in SETTINGS if not re.search("_OTLP_(METRICS|LOGS)_", s.variable)}
    assert rows == general | {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "KERNOB_CONFIG"}
    for setting in NUMBERS:
        if setting.variable in rows:
            assert isinstance(setting.kind, Number)
            row = next(line for line in page.splitlines() if line.startswith(f"| `{setting.variable}`"))
            assert f"{setting.kind.low:.15g} to {setting.kind.high:.15g}" in row


def test_the_documentations_example_file_is_valid(tmp_path: Path) -> None:
    """Users copy it."""
    page = Path(__file__).parents[2].joinpath("docs", "configuration.md").read_text()
    file = tmp_path / "kernob.toml"
    file.write_text(page.split("```toml\n")[1].split("```")[0])
    settings = load_settings({}, file)
    assert settings.aggregation_window_s == 15
    assert settings.otlp.endpoint == "https://collector.example:4317"
    assert settings.otlp.headers == (("authorization", "Bearer 0123"),)


def test_a_hosts_name_may_be_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel calls it is made Unicode; a host.name that is set comes first."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="caf\udce9"))
    assert Settings().host_name == "caf?"
    assert Settings(resource_attributes=(("host.name", "é"),)).host_name == "é"
