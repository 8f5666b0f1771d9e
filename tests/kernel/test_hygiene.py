# SPDX-License-Identifier: Apache-2.0
"""How the agent begins and ends: preconditions, exit codes, one clear line, nothing left behind."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from bpfids import all_ids, held_ids, left_behind
from harness import (
    LOAD_PAUSE_S,
    SCALE,
    Puppet,
    differences,
    patience,
    refused_agent,
    run_workload,
    running_agent,
    wait_until,
)

STOP_BOUND_S = 3.0 if SCALE == 1 else 30.0


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.lane, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT"),
    ],
)
def test_a_signal_ends_it_with_the_last_bytes_and_nothing_left(agents: Path, number: signal.Signals) -> None:
    """SIGTERM or SIGINT: exit 0 in time, bytes of the last moment included, no program, map or link left."""
    before = all_ids()
    with running_agent(agents / f"end{number}", scrape_interval=300) as agent:
        assert all_ids() - before, "nothing was loaded at all"
        processes = run_workload("scenarios", "two_processes")[0].demand().processes
        totals = agent.stop(number)
    assert agent.ended_s - agent.asked_to_stop_s < STOP_BOUND_S * patience()
    assert differences(totals, processes) == []
    wait_until(lambda: not left_behind(before), "the kernel to free what the agent held", 30)


@pytest.mark.lane
def test_sigkill_leaves_nothing_attached(agents: Path) -> None:
    """SIGKILL: the kernel takes everything back by itself; nothing was pinned."""
    before = all_ids()
    with running_agent(agents / "killed") as agent:
        mine = all_ids() - before
        assert mine & held_ids()
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
    wait_until(lambda: not left_behind(before), "the kernel to free what the agent held", 30)


def test_it_ends_in_time_under_load(agents: Path) -> None:
    """SIGTERM under traffic and with many sockets open: still in time."""
    with Puppet("peer", "load", 600, LOAD_PAUSE_S) as load:
        with running_agent(agents / "load") as agent:
            run_workload("cases", "many_at_once")
            agent.stop()
        load.tell("stop")
        assert load.answer()["pid"] == load.pid
    assert agent.ended_s - agent.asked_to_stop_s < STOP_BOUND_S * patience()


BAD_SETTINGS = [
    ("scrape_interval", ""),
    ("scrape_interval", "fast"),
    ("scrape_interval", "-1"),
    ("scrape_interval", "0.1"),
    ("scrape_interval", "1e9"),
    ("scrape_interval", "nan"),
    ("aggregation_window", "0.7"),
    ("max_sockets", "0"),
    ("max_sockets", "99999999999999999999"),
    ("max_flows", "-5"),
    ("max_processes", "many"),
    ("max_process_series", "1.5"),
    ("process_flows", "perhaps"),
    ("strategies_off", "magic"),
    ("log_level", "loud"),
    ("btf", "/nonexistent/btf"),
    ("proc_root", "/nonexistent"),
    ("scrape_intervall", "1"),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=[f"{n}={v}"[:40] for n, v in BAD_SETTINGS])
def test_a_bad_setting_is_one_line_and_exit_2_before_anything_attaches(
    agents: Path, name: str, value: str
) -> None:
    """The line names the variable; nothing was loaded, no socket and no file made."""
    before = all_ids()
    directory = agents / f"bad-{name}-{abs(hash(value))}"
    code, said = refused_agent(directory, **{name: value})
    assert code == 2, said
    assert len(said.splitlines()) == 1, said
    assert f"KERNOB_{name.upper()}" in said
    assert not left_behind(before)
    assert [path.name for path in directory.iterdir()] == []


def test_without_root_it_is_one_line_and_exit_3(agents: Path) -> None:
    """Not root: exit 3, one line, nothing attached, in directories that everybody may write to."""
    if not shutil.which("setpriv"):
        pytest.skip("missing feature: setpriv")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        directory = Path(name) / "nobody"
        directory.mkdir()
        directory.chmod(0o777)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        code, said = refused_agent(directory, *nobody)
    assert code == 3, said
    assert len(said.splitlines()) == 1, said
    assert "root" in said


def test_without_any_strategy_it_is_one_line_and_exit_5(agents: Path) -> None:
    """A kernel with no candidate for a needed hook: exit 5, one line, nothing left."""
    before = all_ids()
    code, said = refused_agent(agents / "none", strategies_off="tp_btf,raw_tp,fentry,kprobe")
    assert code == 5, said
    assert len(said.splitlines()) == 1, said
    wait_until(lambda: not left_behind(before), "the kernel to free what the agent held", 30)


def test_broken_type_information_is_one_line(agents: Path) -> None:
    """A BTF file that is none: one line that names it, exit 5, nothing left."""
    garbage = agents / "garbage.btf"
    garbage.write_bytes(b"\x9f\xeb\x01\x00" + bytes(range(256)))
    before = all_ids()
    code, said = refused_agent(agents / "garbage", btf=garbage)
    assert code == 5, said
    assert len(said.splitlines()) == 1, said
    assert str(garbage) in said
    assert not left_behind(before)


def test_a_second_agent_on_the_socket_is_refused_and_the_first_goes_on(agents: Path) -> None:
    """One socket, two agents: the second says one line and loads nothing, the first stays exact."""
    with running_agent(agents / "first") as agent:
        before = all_ids()
        code, said = refused_agent(agents / "second", socket=agents / "first" / "run" / "agent.sock")
        assert code not in (0, 70), said
        assert len(said.splitlines()) == 1, said
        assert not left_behind(before)
        processes = run_workload("scenarios", "two_processes")[0].demand().processes
        totals = agent.stop()
    assert differences(totals, processes) == []


def test_a_file_that_cannot_be_written_is_one_line(agents: Path) -> None:
    """--otlp-file into a directory that is none: one line with the path, nothing attached."""
    before = all_ids()
    directory = agents / "unwritable"
    directory.mkdir()
    (directory / "otlp.jsonl").mkdir()
    code, said = refused_agent(directory)
    assert code not in (0, 70), said
    assert len(said.splitlines()) == 1, said
    assert "otlp.jsonl" in said
    wait_until(lambda: not left_behind(before), "the kernel to free what the agent held", 30)
