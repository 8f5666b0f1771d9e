# SPDX-License-Identifier: Apache-2.0
"""kernel.tracefs on a directory that looks like one; files keep what is written to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kernob.kernel import tracefs

GONE = 2**22 + 1  # beyond the largest pid_max


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control file of a tracefs."""
    (tmp_path / "events").mkdir()
    monkeypatch.setattr(tracefs, "_PLACES", (tmp_path / "absent", tmp_path))
    path = tmp_path / "kprobe_events"
    path.write_text("")
    return path


def test_an_event_is_removed_by_its_own_function(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created by one line, removed by one; the end then has nothing to do."""
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_options: "77\n")
    event_id, remove = tracefs.add_kprobe("tcp_splice_read", at_return=True)
    monkeypatch.undo()
    assert event_id == 77
    remove()
    created, removed = control.read_text().splitlines()
    kind, _, rest = created.partition(":")
    name, function = rest.split()
    assert kind == "r4096"
    assert name.startswith(f"kernob/kernob_{os.getpid()}_")
    assert function == "tcp_splice_read"
    assert removed == f"-:{name}"
    tracefs.release()
    assert len(control.read_text().splitlines()) == 2


def test_the_end_removes_an_event_whose_creation_was_interrupted(control: Path) -> None:
    """Between its creation and the function that removes it anything may fail, as here reading its id."""
    with pytest.raises(FileNotFoundError):
        tracefs.add_kprobe("tcp_splice_read", at_return=False)
    tracefs.release()
    created, removed = control.read_text().splitlines()
    assert removed == "-:" + created.split()[0].removeprefix("p:")


def test_an_event_that_another_session_still_uses_is_left_to_it(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel removes none that is in use; whoever made it removes it when its own end comes."""
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_options: "77\n")
    _, remove = tracefs.add_kprobe("tcp_splice_read", at_return=True)
    append = tracefs._append

    def busy(path: Path, line: str) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(tracefs, "_append", busy)
    tracefs.release()
    monkeypatch.setattr(tracefs, "_append", append)
    remove()
    monkeypatch.undo()
    created, removed = control.read_text().splitlines()
    assert removed == "-:" + created.partition(":")[2].split()[0]


def test_only_events_of_agents_that_are_gone_are_leftovers(control: Path) -> None:
    """Those of living agents and of other programs stay."""
    gone, alive = f"kernob/kernob_{GONE}_0_p_f", f"kernob/kernob_{os.getpid()}_0_p_f"
    lines = [f"p:{gone} f", f"p:{alive} f", f"p:kprobes/kernob_{GONE}_0_p_f f", "p:kernob/other f"]
    control.write_text("".join(f"{line}\n" for line in lines))
    tracefs.remove_leftovers()
    assert control.read_text().splitlines()[len(lines) :] == [f"-:{gone}"]
