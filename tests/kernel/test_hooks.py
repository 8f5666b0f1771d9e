# SPDX-License-Identifier: Apache-2.0
"""Which of a hook's candidates a kernel takes, with everything on."""

from __future__ import annotations

import os

import pytest
from tcp_watch import Watch

from kernob.kernel.btf import VMLINUX
from kernob.model import ProbeState

pytestmark = pytest.mark.lane


def test_every_hook_of_every_probe_is_attached(watch: Watch) -> None:
    """By one of its candidates, whatever this kernel has and this run may use."""
    assert [report for report in watch.session.reports if report.state is ProbeState.FAILED] == []


def test_no_hook_is_content_with_an_untyped_tracepoint(watch: Watch) -> None:
    """Where there are typed ones: a program that the kernel refuses as such would cost every call more."""
    if not VMLINUX.exists() or "tp_btf" in os.environ.get("KERNOB_STRATEGIES_OFF", ""):
        pytest.skip("missing feature: typed tracepoints")
    ours = [report for report in watch.session.reports if report.probe in ("traffic", "tcp")]
    assert len(ours) > 3
    raw = {report.hook: report.strategy for report in ours if "raw_tp" in report.strategy}
    assert raw == {}
