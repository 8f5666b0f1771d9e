# SPDX-License-Identifier: Apache-2.0
"""`kernob doctor`: what it says, in words and as JSON, and its exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernob.config import Settings
from kernob.export.socket import SnapshotServer
from kernob.model import Attempt, DoctorReport, HookReport, MapUsage, ProbeState, Snapshot
from kernob.ui.doctor import as_document, is_fit, run_doctor
from kernob.view import View
from tests.unit.fake_agent import FakeAgent

SEND = HookReport(
    "traffic",
    "send",
    ProbeState.ATTACHED,
    "fentry:inet_sendmsg",
    (
        Attempt("raw_tp:sock_send_length", False, "no such tracepoint\n  in \x1b[31mthis[/] kernel"),
        Attempt("fentry:inet_sendmsg", True, "", "what the call returned"),
    ),
)
EXIT = HookReport("process", "exit", ProbeState.FAILED, "", (Attempt("raw_tp:exit", False, "refused"),))
REPORT = DoctorReport(
    kernel="6.1.0-28-cloud-amd64",
    architecture="x86_64",
    uid=0,
    capabilities=("CAP_BPF", "CAP_PERFMON"),
    lockdown="none",
    btf="/sys/kernel/btf/vmlinux",
    headers="",
    mounts={"tracefs": "/sys/kernel/tracing", "debugfs": ""},
    bcc="0.26.0",
    hooks=(SEND, EXIT),
    optional_hooks=("process.exit",),
    blind_spots=("SCTP",),
    advice=("mount it",),
)


def settings(tmp_path: Path) -> Settings:
    return Settings(socket_path=tmp_path / "run" / "agent.sock")


def printed(report: DoctorReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    run_doctor(settings(tmp_path), False, lambda _settings, _view: report)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page names machine, hooks with every refusal, blind spots and advice, one fact a line."""
    assert printed(REPORT, tmp_path, capsys) == [
        "kernob doctor everything essential attaches",
        "",
        "Machine",
        "ok kernel 6.1.0-28-cloud-amd64 x86_64",
        "ok user root, with CAP_BPF, CAP_PERFMON",
        "ok lockdown none",
        "ok BTF /sys/kernel/btf/vmlinux",
        "-- headers none, and none needed with BTF",
        "ok BCC 0.26.0",
        "ok tracefs /sys/kernel/tracing",
        "-- debugfs not mounted (not needed)",
        "",
        "Hooks, tried for this report and taken away again",
        "ok traffic.send fentry:inet_sendmsg: what the call returned",
        "not raw_tp:sock_send_length: no such tracepoint in \N{REPLACEMENT CHARACTER}[31mthis[/] kernel",
        "-- process.exit nothing could be attached (optional)",
        "not raw_tp:exit: refused",
        "",
        "What Kernob cannot see",
        "-- SCTP",
        "",
        "What to do",
        "1. mount it",
    ]


def test_what_is_missing_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thing that keeps Kernob from working carries the mark !! in words."""
    poor = replace(
        REPORT,
        uid=1000,
        capabilities=(),
        lockdown="confidentiality",
        btf="",
        bcc="",
        hooks=(),
        problem="not permitted: run as root",
    )
    marked = [line for line in printed(poor, tmp_path, capsys) if line.startswith("!!")]
    assert marked == [
        "!! problem not permitted: run as root",
        "!! user uid 1000, with no capability that matters here",
        "!! missing CAP_BPF, CAP_PERFMON",
        "!! lockdown confidentiality",
        "!! headers none",
        "!! BCC not installed",
    ]


def test_admin_needs_no_finer_capability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, which older kernels do not know."""
    lines = printed(replace(REPORT, capabilities=("CAP_SYS_ADMIN",)), tmp_path, capsys)
    assert "ok user root, with CAP_SYS_ADMIN" in lines
    assert not any(line.startswith("!!") for line in lines)


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (REPORT, 0),
        (replace(REPORT, optional_hooks=()), 5),
        (replace(REPORT, hooks=(EXIT,)), 5),
        (replace(REPORT, hooks=()), 5),
        (replace(REPORT, hooks=(replace(SEND, state=ProbeState.OFF),)), 5),
        (replace(REPORT, problem="the verifier refused it", problem_code=5), 5),
        (replace(REPORT, problem="not permitted: run as root", problem_code=3), 3),
    ],
)
def test_exit_code(
    report: DoctorReport, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where every essential hook attached, else what `kernob run` would; the document says the same."""
    assert run_doctor(settings(tmp_path), True, lambda _settings, _view: report) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["v"], document["fit"]) == (1, code == 0)
    assert is_fit(report) == (code == 0)


def test_the_document() -> None:
    """The JSON has every field, on one line, without anything a terminal would obey."""
    line = as_document(REPORT)
    assert line.isprintable()
    document = json.loads(line)
    assert document["hooks"][0] == {
        "probe": "traffic",
        "hook": "send",
        "state": "attached",
        "strategy": "fentry:inet_sendmsg",
        "attempts": [
            {
                "strategy": "raw_tp:sock_send_length",
                "attached": False,
                "reason": "no such tracepoint in \N{REPLACEMENT CHARACTER}[31mthis[/] kernel",
                "measures": "",
            },
            {
                "strategy": "fentry:inet_sendmsg",
                "attached": True,
                "reason": "",
                "measures": "what the call returned",
            },
        ],
    }
    assert document["mounts"] == {"tracefs": "/sys/kernel/tracing", "debugfs": ""}


def test_a_running_agent_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an agent runs its hooks, maps and losses are shown, and nothing is tried."""
    agent = FakeAgent()
    agent.standing = Snapshot(
        1,
        0,
        1.0,
        "h",
        (),
        hooks=(SEND,),
        maps=(MapUsage("socks", 95, 100, 2_500_000), MapUsage("flows", 1, 100, 1_000)),
        losses={"map_full": 1203, "decode": 0},
    )

    def from_view(used: Settings, view: View | None) -> DoctorReport:
        assert view is not None
        return replace(
            REPORT, hooks=view.hooks, maps=view.maps, losses=view.losses, agent=str(used.socket_path)
        )

    with SnapshotServer(settings(tmp_path).socket_path, agent):
        assert run_doctor(settings(tmp_path), False, from_view) == 0
        agent.end()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("Hooks, as the running agent on ") for line in lines)
    start = lines.index("Losses and maps")
    assert lines[start + 1 : start + 4] == [
        "!! lost map_full 1,203 since the agent started: bytes; "
        "raise KERNOB_MAX_FLOWS or KERNOB_MAX_PROCESSES",
        "!! map socks 95 of 100 entries, 2.50 MB",
        "ok map flows 1 of 100 entries, 1.00 kB",
    ]


def test_examine_is_found_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being told otherwise the command calls kernob.examine, with no view where no agent runs."""

    def examine(used: Settings, view: View | None) -> DoctorReport:
        assert (used, view) == (settings(tmp_path), None)
        return REPORT

    monkeypatch.setattr("kernob.examine.examine", examine)
    assert run_doctor(settings(tmp_path), False) == 0
    assert capsys.readouterr().out.startswith("kernob doctor")


def test_in_a_container_and_with_its_own_tracefs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it looked from, and that a missing tracefs costs nothing where it can be mounted."""
    mounts = {"tracefs": "", "bpffs": ""}
    lines = printed(replace(REPORT, in_container=True, may_mount=True, mounts=mounts), tmp_path, capsys)
    assert "ok place in a container" in lines
    assert "-- tracefs not mounted (kprobes and system calls; Kernob mounts its own)" in lines
    assert "-- bpffs not mounted (not needed)" in lines
