# SPDX-License-Identifier: Apache-2.0
"""Puts together what `kernob doctor` shows: the machine's facts, and what became of every hook.

Settings enter, a `DoctorReport` leaves. Called by `ui.doctor`. Where an agent runs its own word counts;
else every hook is tried here for real, because feature probes lie, and taken away again.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from kernob import event_feed
from kernob.config import Settings
from kernob.errors import KernobError
from kernob.kernel.capabilities import advice, survey
from kernob.model import DoctorReport, HookReport
from kernob.pipeline import new_session
from kernob.probes import PROBES
from kernob.view import View


def examine(settings: Settings, running: View | None) -> DoctorReport:
    """Look around; `running` is the agent's view, None where none runs. Attaches nothing for good."""
    facts = survey()
    problem: KernobError | None = None
    if running is not None:
        hooks = running.hooks
    else:
        hooks, problem = _tried(settings)
    return DoctorReport(
        kernel=facts.release,
        architecture=facts.architecture,
        uid=facts.uid,
        capabilities=facts.capabilities,
        lockdown=facts.lockdown,
        btf=str(settings.btf_path or facts.btf),
        headers=facts.headers,
        mounts=facts.mounts,
        bcc=_bcc_version() if facts.bcc else "",
        hooks=hooks,
        optional_hooks=(
            *(f"{hook.probe}.{hook.name}" for probe in PROBES for hook in probe.hooks if not hook.essential),
            event_feed.HOOK,
        ),
        agent=str(settings.socket_path) if running else "",
        problem=str(problem or ""),
        problem_code=problem.exit_code if problem else 0,
        maps=running.maps if running else (),
        losses=running.losses if running else {},
        blind_spots=tuple(spot for probe in PROBES for spot in probe.blind_spots),
        advice=advice(facts),
        may_mount=facts.may_mount,
        in_container=facts.in_container,
    )


def _tried(settings: Settings) -> tuple[tuple[HookReport, ...], KernobError | None]:
    """Attach every hook, take it away again; return the reports, and why it failed as a whole."""
    session = new_session(settings)
    try:
        with session:
            return (*session.reports, event_feed.report()), None
    except KernobError as error:
        return session.reports, error


def _bcc_version() -> str:
    """Read the version from the package's source: importing BCC would load LLVM into this process."""
    spec = find_spec("bcc")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        source = Path(folder, "version.py")
        if source.exists() and (
            found := re.search(r"__version__ = ['\"]([^'\"]+)", source.read_text("utf-8"))
        ):
            return found[1]
    return "installed, of unknown version"
