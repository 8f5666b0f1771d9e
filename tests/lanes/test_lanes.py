# SPDX-License-Identifier: Apache-2.0
"""The lanes' own logic, without a guest: what is cached, what is installed, what counts, what fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .__main__ import main, parse
from .cache import GENERATIONS, Cache, content_key, remove_tree
from .counts import count
from .debian import Mirrors, find_uri
from .errors import LaneError
from .guest import (
    Console,
    Job,
    explain,
    follow,
    guest_environment,
    project_files,
    unpack_results,
    write_payload,
)
from .host import end_group, output, run
from .image import RECIPE, SUITES, Suite
from .lockfile import for_guest

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]


def silent(_text: str) -> None:
    """A listener that does not listen."""


# ---- cache ---------------------------------------------------------------------------------------


def test_an_entry_is_built_once_and_found_again(tmp_path: Path) -> None:
    """The second request for the same key returns the same directory without building."""
    cache, built = Cache(tmp_path, silent), []

    def build(directory: Path) -> None:
        built.append(directory)
        (directory / "disk").write_text("x")

    first = cache.entry("system", "0" * 12, build)
    assert cache.entry("system", "0" * 12, build) == first
    assert len(built) == 1
    assert (first / "disk").read_text() == "x"


def test_an_interrupted_build_leaves_no_entry(tmp_path: Path) -> None:
    """What a failed build wrote is never taken for an entry, and is gone after the next build."""
    cache = Cache(tmp_path, silent)

    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise LaneError("interrupted")

    with pytest.raises(LaneError, match="interrupted"):
        cache.entry("system", "0" * 12, fail)
    entry = cache.entry("system", "0" * 12, lambda directory: (directory / "whole").touch())
    assert [path.name for path in entry.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.glob("system-*")] == [entry.name]


def test_two_runs_build_an_entry_once(tmp_path: Path) -> None:
    """A second run that wants what a first one is building waits, says so, and does not build."""
    said: list[str] = []
    started, go_on = threading.Event(), threading.Event()
    built: list[Path] = []

    def build(directory: Path) -> None:
        built.append(directory)
        started.set()
        assert go_on.wait(30)

    first = threading.Thread(target=lambda: Cache(tmp_path, silent).entry("system", "a" * 12, build))
    first.start()
    assert started.wait(30)

    def say(text: str) -> None:
        said.append(text)
        go_on.set()

    Cache(tmp_path, say).entry("system", "a" * 12, build)
    first.join()
    assert said == ["another run is building system; waiting for it"]
    assert len(built) == 1


def test_old_entries_are_removed_but_the_one_a_run_may_still_use(tmp_path: Path) -> None:
    """Of one name the latest two entries stay, whatever their keys; other names are left alone."""
    cache = Cache(tmp_path, silent)
    other = cache.entry("other", "f" * 12, lambda _directory: None)
    for number in range(4):
        entry = cache.entry("system", f"{number:012x}", lambda _directory: None)
        os.utime(entry, ns=(number, number))
    cache.entry("system", f"{4:012x}", lambda _directory: None)
    assert sorted(path.name for path in tmp_path.glob("system-*")) == [
        "system-000000000003",
        "system-000000000004",
    ]
    assert GENERATIONS == 2
    assert other.is_dir()


def test_a_refresh_replaces_the_entry(tmp_path: Path) -> None:
    """With refresh the same key is built anew and replaces what was there."""
    cache = Cache(tmp_path, silent)
    for word in ("old", "new"):
        entry = cache.entry("s", "0" * 12, lambda d, w=word: (d / w).touch(), refresh=True)  # type: ignore[misc]
    assert [path.name for path in entry.iterdir()] == ["new"]


def test_a_directory_with_a_mount_inside_is_not_deleted(tmp_path: Path) -> None:
    """Removing a tree refuses when something is mounted below it, as an ended build may have left."""
    tree = tmp_path / "tree"
    (tree / "proc").mkdir(parents=True)
    (tree / "file").touch()
    mounts = "22 28 0:20 / /elsewhere rw - proc none rw\n31 28 0:20 / {} rw - proc none rw\n"
    with pytest.raises(LaneError, match="mounted"):
        remove_tree(tree, mounts.format(tree / "proc"))
    assert (tree / "file").exists()
    remove_tree(tree, mounts.format(f"{tree}-other/proc"))
    assert not tree.exists()


def test_keys_see_where_parts_end() -> None:
    """Moving a byte from one part to the next changes the key."""
    assert content_key(["ab", "c"]) != content_key(["a", "bc"])
    assert content_key(["ab", b"c"]) == content_key([b"ab", "c"])


# ---- packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_the_lock_yields_one_hashed_version_of_each_package(suite: Suite) -> None:
    """For each guest's Python every package is pinned once, without markers, and with its hashes."""
    lock = (PROJECT / "requirements-dev.lock").read_text()
    lines = for_guest(lock, suite.python_version, frozenset({"mypy"})).splitlines()
    pins = [Requirement(line.rstrip(" \\")) for line in lines if not line.startswith(" ")]
    names = [pin.name for pin in pins]
    assert len(names) == len(set(names))
    assert {"pytest", "numpy", "grpcio"} <= set(names)
    assert "mypy" not in names
    assert all(pin.marker is None for pin in pins)
    hashed = [after for before, after in pairwise(lines) if not before.startswith(" ")]
    assert all(line.lstrip().startswith("--hash=sha256:") for line in hashed)


def test_the_guest_python_decides_the_version() -> None:
    """A package with a version for each Python comes in the guest's version, not in the host's."""
    lock = (
        "n==1 ; python_full_version < '3.12' \\\n    --hash=sha256:01\n"
        "n==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:02\n"
        "w==3 ; sys_platform == 'win32' \\\n    --hash=sha256:03\n    # via n\n"
    )
    assert for_guest(lock, "3.11", frozenset()) == "n==1 \\\n    --hash=sha256:01\n"
    assert for_guest(lock, "3.13", frozenset()) == "n==2 \\\n    --hash=sha256:02\n"


def test_mirrors_are_the_machines_own() -> None:
    """Debian's archives are found among others by label, or by the URI's end before the first update."""
    listing = (
        "https://a.example/x/|Other\nhttp://m.example/debian/|Debian\nhttp://m.example/s/|Debian-Security\n"
    )
    assert find_uri(listing, "Debian", "debian") == "http://m.example/debian/"
    assert find_uri(listing, "Debian-Security", "debian-security") == "http://m.example/s/"
    fresh = "https://a.example/node/|\nhttp://m.example/debian/|\nhttp://m.example/debian-security/|\n"
    assert find_uri(fresh, "Debian", "debian") == "http://m.example/debian/"
    assert find_uri(fresh, "Debian-Security", "debian-security") == "http://m.example/debian-security/"
    assert find_uri("http://u.example/ubuntu/|Ubuntu\n", "Debian", "debian") is None


def test_sources_name_the_archive_key() -> None:
    """Every source is bound to Debian's keyring."""
    text = Mirrors("http://m.example/debian/", None, Path("/k.gpg")).sources("trixie")
    assert text == "deb [signed-by=/k.gpg] http://m.example/debian/ trixie main\n"


def test_the_recipe_exists() -> None:
    """Every file that decides an image's contents is there, so that a change of it changes the key."""
    assert all((HERE / name).is_file() for name in RECIPE)


# ---- guest ---------------------------------------------------------------------------------------


def job(boot_limit_s: float = 30.0, limit_s: float = 30.0) -> Job:
    """A job that only sets bounds."""
    return Job(["true"], {}, boot_limit_s, limit_s, 512, 1)


def stand_in(script: str, tmp_path: Path, bounds: Job) -> Console:
    """Follow a shell script as if it were the emulator."""
    return follow(["sh", "-c", script], bounds, tmp_path, silent, tmp_path / "console.log")


def test_a_guest_that_ends_before_user_space_is_a_failure(tmp_path: Path) -> None:
    """An emulator that ends without the guest having come up fails the lane and says why."""
    with pytest.raises(
        LaneError, match=r"did not boot; the emulator ended with 1 .*Kernel panic - not syncing: VFS"
    ):
        stand_in("echo '[ 1.0] Kernel panic - not syncing: VFS'; exit 1", tmp_path, job())


def test_a_guest_that_does_not_come_up_in_time_is_ended(tmp_path: Path) -> None:
    """Past the boot limit the emulator is ended, and nothing of it is left."""
    with pytest.raises(LaneError, match="did not boot within 0 s"):
        stand_in(f"echo $$ > {tmp_path}/pid; exec sleep 600", tmp_path, job(boot_limit_s=0.2))
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_command_that_does_not_end_in_time_is_a_failure(tmp_path: Path) -> None:
    """Past the whole limit the lane fails, though the guest had come up."""
    with pytest.raises(LaneError, match="did not finish within 1 s"):
        stand_in("echo '@lane up 1 6.1'; exec sleep 600", tmp_path, job(limit_s=1.0))


def test_the_console_is_kept_whole(tmp_path: Path) -> None:
    """Every line is in console.log without the terminal's line ends, also one that was never ended."""
    console = stand_in("printf '@lane up 1 6.1\\r\\nhello\\r\\nlast'", tmp_path, job())
    assert console.is_up
    assert (tmp_path / "console.log").read_text() == "@lane up 1 6.1\nhello\nlast\n"


def test_results_bring_the_exit_code(tmp_path: Path) -> None:
    """The archive's exit code and files arrive; a disk that was never written to has no exit code."""
    (tmp_path / "lane/results").mkdir(parents=True)
    (tmp_path / "lane/exit-code").write_text("7\n")
    (tmp_path / "lane/results/report.xml").write_text("<x/>")
    disk, results = tmp_path / "disk", tmp_path / "out"
    results.mkdir()
    subprocess.run(["tar", "-cf", disk, "-C", tmp_path / "lane", "exit-code", "results"], check=True)
    os.truncate(disk, 2**20)
    assert unpack_results(disk, tmp_path, results) == 7
    assert (results / "report.xml").read_text() == "<x/>"
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").write_bytes(bytes(2**20))
    assert unpack_results(tmp_path / "blank", tmp_path / "empty", results) is None


def test_results_cut_off_still_bring_the_exit_code(tmp_path: Path) -> None:
    """Results that did not fit the disk do not hide the exit code."""
    (tmp_path / "lane/results").mkdir(parents=True)
    (tmp_path / "lane/exit-code").write_text("1\n")
    (tmp_path / "lane/results/big").write_bytes(bytes(200_000))
    disk, results = tmp_path / "disk", tmp_path / "out"
    results.mkdir()
    subprocess.run(["tar", "-cf", disk, "-C", tmp_path / "lane", "exit-code", "results"], check=True)
    os.truncate(disk, 65_536)
    assert unpack_results(disk, tmp_path, results) == 1


def test_a_silent_guest_is_said_to_be_silent() -> None:
    """Where the guest gave no line at all, the message says so."""
    assert explain(Console(0.0), "did not boot", Path("/r")) == (
        "the guest did not boot (it said nothing); its console is in /r/console.log"
    )


def test_the_project_is_what_git_knows_and_has(tmp_path: Path) -> None:
    """Changed and new files are handed over; ignored and deleted ones are not."""
    for name in ("kept", "deleted", "new", "ignored"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored\n")
    output(["git", "init", "-q"], cwd=tmp_path)
    output(["git", "add", "kept", "deleted"], cwd=tmp_path)
    (tmp_path / "deleted").unlink()
    assert project_files(tmp_path) == [".gitignore", "kept", "new"]


def test_what_is_given_is_a_result_from_the_beginning(tmp_path: Path) -> None:
    """A directory of the host comes back with what the guest adds to it."""
    project, given = tmp_path / "project", tmp_path / "programs"
    for directory in (project, given):
        directory.mkdir()
    output(["git", "init", "-q"], cwd=project)
    (given / "one").write_text("1")
    write_payload(tmp_path / "payload", project, replace(job(), given=given))
    assert output(["tar", "-xOf", str(tmp_path / "payload"), "results/programs/one"]) == "1"


def test_the_callers_environment_wins() -> None:
    """What --env gives replaces the lane's own setting."""
    assert guest_environment({"TERM": "vt100", "KERNOB_STRATEGIES_OFF": "fentry"})["TERM"] == "vt100"


def test_the_guest_environment_is_no_configuration_of_kernob() -> None:
    """Kernob refuses KERNOB_ variables that it does not know, so the lane sets none by itself."""
    assert [name for name in guest_environment({}) if name.startswith(("KERNOB_", "OTEL_"))] == []


# ---- host and command line -----------------------------------------------------------------------


def test_the_number_of_a_process_that_is_gone_is_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a process was waited for, its number may be another's: ending it again signals nobody."""
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _number: signalled.append(group))
    process = subprocess.Popen(["true"], cwd=tmp_path, start_new_session=True)
    process.wait()
    end_group(process)
    assert signalled == []


def test_a_failing_tool_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    """A host program that fails becomes a LaneError with the last lines it wrote."""
    with pytest.raises(LaneError, match=r"sh ended with 3.*\n  no such package"):
        run(["sh", "-c", "echo no such package; exit 3"], tmp_path / "log")


@pytest.mark.parametrize(
    "argv", [["bookworm"], ["bookworm", "--env", "NOVALUE", "--", "true"], ["sid", "--", "true"], []]
)
def test_a_wrong_command_line_ends_with_2(argv: list[str]) -> None:
    """No command, a malformed variable, an unknown suite: exit code 2 before anything is built."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_options_of_the_command_are_the_commands() -> None:
    """Everything behind the first -- belongs to the command, also another --."""
    arguments = parse(["trixie", "--headers", "--", "sh", "--limit", "5", "--", "x"])
    assert arguments.command == ["sh", "--limit", "5", "--", "x"]
    assert arguments.headers
    assert arguments.limit == 1200.0


def test_the_lane_program_needs_only_the_standard_library() -> None:
    """lane.sh --help works with the distribution's interpreter, isolated from any environment."""
    done = subprocess.run(
        ["sh", HERE / "lane.sh", "--help"], capture_output=True, text=True, check=True, env={}
    )
    assert "exit codes" in done.stdout


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closing", "counts"),
    [
        ("==== 12 passed in 3.21s ====", (12, 0, 0)),
        ("12 passed, 1 warning in 0.30s", (12, 0, 0)),
        (
            "=== 1 failed, 2 errors, 3 skipped, 4 xfailed, 5 xpassed, 6 deselected in 75.00s (0:01:15) ===",
            (0, 8, 7),
        ),
        ("1 passed in 1.0s\nother\n1 error in 2.0s", (1, 1, 0)),
        ("no tests ran in 0.01s", (0, 0, 0)),
        ("collected 5 items\n3 passed the door in 2 s", (0, 0, 0)),
    ],
)
def test_counts_add_up(closing: str, counts: tuple[int, int, int]) -> None:
    """Closing lines of every shape are summed; errors are failures; anything else is not a closing line."""
    assert count(closing) == counts


def test_no_pytest_run_is_no_count(tmp_path: Path) -> None:
    """A log without a closing line counts nothing, so that .ci/run calls the step failed."""
    log = tmp_path / "log"
    log.write_text("killed\n")
    program = [sys.executable, str(HERE / "counts.py"), str(log)]
    assert output(program).split() == ["0", "0", "0"]
