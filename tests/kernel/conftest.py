# SPDX-License-Identifier: Apache-2.0
"""What the kernel tests share: markers, the refusal to run without root, a count of what was skipped and why.

Cases that failed while the machine stood still, or hid an event from us, are played again (replay.py). `lane`
marks the tests that run in every emulated kernel as well; the others run on the host only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for directory in (HERE, HERE / "workloads"):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))

from replay import Replays, Witness  # noqa: E402
from stalls import Stalls  # noqa: E402
from tcp_watch import Watch, snmp, watching  # noqa: E402
from unrun import Unrun  # noqa: E402

from kernob.errors import KernelError  # noqa: E402

_absent: list[str] = []
"""Witnesses that could not come, for the summary: what is printed before a test is captured."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers; have cases played again where replay.py says so."""
    config.addinivalue_line("markers", "lane: exactness test that every emulated kernel runs too")
    config.addinivalue_line("markers", "kernel: loads programs into the running kernel; needs root and bpf")

    def witnesses() -> list[Witness]:
        found: list[Witness] = []
        for kind in (Stalls, Unrun) if not os.geteuid() else ():
            try:
                witness = kind()
            except (KernelError, OSError) as error:
                _absent.append(f"kernel tests: no replays for what {kind.__name__} sees: {error}")
                continue
            config.add_cleanup(witness.close)
            found.append(witness)
        return found

    config.pluginmanager.register(Replays(HERE, witnesses))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands here; without root nothing of it can run."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kernel)
            if os.geteuid():
                item.add_marker(pytest.mark.skip(reason="missing feature: root"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each missing feature, with the number of tests that wanted it."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "missing feature: " in reason:
            reasons[reason.split("missing feature: ", 1)[1]] += 1
    for line in _absent:
        terminalreporter.write_line(line)
    for feature, count in sorted(reasons.items()):
        terminalreporter.write_line(f"kernel tests: {count} skipped for the missing feature {feature}")


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory under which every agent of this session has its own.

    KERNOB_TEST_PROGRAMS names a directory where what is compiled outlives the session. A file in it counts
    only for the text, macros and headers it was made from (kernob/kernel/compiler.py).
    """
    directory = tmp_path_factory.mktemp("agents")
    kept = os.environ.get("KERNOB_TEST_PROGRAMS")
    if not kept:
        yield directory
        return
    for path in (cache := directory / "cache", Path(kept)):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _copy_programs(Path(kept), cache)
    yield directory
    _copy_programs(cache, Path(kept))


@pytest.fixture(scope="session")
def all_programs(agents: Path) -> Iterator[Watch]:
    """All programs attached, with the usual settings: attaching costs an emulated processor half a minute.

    What nobody reads of it (flows, processes, names, calls, lives and their events) fills up in the course of
    time, and counts as lost; `Watch.lost` does not.
    """
    before = snmp()["RetransSegs"]
    with watching(agents / "cache") as found:
        yield found
        found.drain()
        assert found.resent[Path("/proc/self/ns/net").stat().st_ino] <= snmp()["RetransSegs"] - before


@pytest.fixture(scope="module")
def watch(all_programs: Watch) -> Watch:
    """What they say from here on, for the cases of one module."""
    return all_programs.anew()


def _copy_programs(source: Path, target: Path) -> None:
    for path in source.glob("programs-*.json"):
        shutil.copyfile(path, target / path.name)
        (target / path.name).chmod(0o600)
