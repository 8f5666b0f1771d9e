# SPDX-License-Identifier: Apache-2.0
"""kernel.session and what it stands on, against the running kernel."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from kernob.config import Settings
from kernob.errors import BtfError, KernelError, PreconditionError, ProgramLoadError
from kernob.kernel import attach, compiler, maps, programs
from kernob.kernel.attach import Fexit, RawTracepoint, TypedTracepoint, all_of, first_of
from kernob.kernel.btf import VMLINUX
from kernob.kernel.compiler import ProgramCode
from kernob.kernel.session import KernelOptions, Session
from kernob.model import ProbeState
from kernob.pipeline import kernel_options, new_session


@pytest.fixture(scope="module")
def cache(agents: Path) -> Path:
    """Compiling takes seconds, in an emulator half a minute: once for all kernel tests."""
    return agents / "cache"


_EXIT = bytes([0x95, 0, 0, 0, 0, 0, 0, 0])
_R0_ZERO = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0])
_ATOMIC = (0xC3, 0xDB)  # BPF_STX | BPF_ATOMIC, 4 and 8 bytes wide
_READ_NULL = bytes([0x79, 0x00, 0, 0, 0, 0, 0, 0])  # r0 = *(u64 *)(r0 + 0)


def options(cache: Path, **others: object) -> KernelOptions:
    """Small maps, a cache of the test's own."""
    return KernelOptions(cache_dir=cache, capacities={"socks": 64, "flows": 64, "procs": 64}, **others)  # type: ignore[arg-type]


@pytest.mark.lane
def test_a_refused_program_shows_the_verifiers_last_lines() -> None:
    """Loading a program that reads through a number says what the verifier objected to."""
    bad = ProgramCode("bad", _R0_ZERO + _READ_NULL + _EXIT, ())
    with pytest.raises(ProgramLoadError, match=r"bad: refused by the verifier: .*invalid mem access"):
        programs.load(bad, {}, programs.RAW_TRACEPOINT)


@pytest.mark.lane
def test_the_first_candidate_that_attaches_holds_and_the_others_say_why_not(cache: Path) -> None:
    """A hook whose best strategies cannot work falls to the next; each attempt has its reason."""
    hook = first_of(
        "test",
        "exit",
        all_of(TypedTracepoint("no_such_tracepoint", "tp_btf__exit")),
        all_of(RawTracepoint("no_such_tracepoint", "raw_tp__exit")),
        all_of(RawTracepoint("sched_process_exit", "raw_tp__exit")),
    )
    with Session(("process.bpf.c",), (hook,), options(cache)) as session:
        (report,) = session.reports
    assert report.state is ProbeState.ATTACHED
    assert report.strategy == "raw_tp:sched_process_exit"
    assert [a.attached for a in report.attempts] == [False, False, True]
    assert "no such tracepoint" in report.attempts[0].reason
    assert "no such tracepoint" in report.attempts[1].reason


@pytest.mark.lane
def test_half_a_candidate_is_taken_back(cache: Path) -> None:
    """When the second attachment of a candidate fails, the first does not stay."""
    hook = first_of(
        "test",
        "pair",
        all_of(
            RawTracepoint("sched_process_exit", "raw_tp__exit"),
            Fexit("no_such_function", "raw_tp__exit"),
        ),
    )
    with Session(("process.bpf.c",), (hook,), options(cache)) as session:
        assert session.reports[0].state is ProbeState.FAILED
        assert session.run_stats() == {}
        with pytest.raises(KernelError, match=r"test\.pair: none of 1 strategies attached"):
            session.require_essential()


def test_kinds_can_be_switched_off(cache: Path) -> None:
    """A strategy that is switched off is not tried, and says so."""
    hook = first_of(
        "test",
        "exit",
        all_of(TypedTracepoint("sched_process_exit", "tp_btf__exit")),
        all_of(RawTracepoint("sched_process_exit", "raw_tp__exit")),
    )
    with Session(("process.bpf.c",), (hook,), options(cache, kinds_off=frozenset({"tp_btf"}))) as session:
        assert session.reports[0].attempts[0].reason == "switched off: tp_btf"
        assert session.reports[0].strategy == "raw_tp:sched_process_exit"


@pytest.mark.skipif(not VMLINUX.exists(), reason="kernel without BTF")
def test_btf_from_a_file(tmp_path: Path, cache: Path) -> None:
    """Type information may come from a copy; a bad copy is refused by name, before anything attaches."""
    copy = tmp_path / "vmlinux.btf"
    shutil.copyfile(VMLINUX, copy)
    with new_session(Settings(btf_path=copy, cache_dir=cache)) as session:
        session.require_essential()
        assert session.type_source == str(copy)
    copy.write_bytes(copy.read_bytes()[:1000])
    with pytest.raises(BtfError, match=r"vmlinux\.btf"), new_session(Settings(btf_path=copy)):
        pass


def test_the_second_start_does_not_compile(tmp_path: Path) -> None:
    """Compiled programs are kept; a cache that others may write, or that is damaged, is not used."""
    settings = Settings(cache_dir=tmp_path)
    with new_session(settings):
        pass
    (cached,) = tmp_path.glob("programs-*.json")
    before = cached.stat()
    with new_session(settings):
        pass
    after = cached.stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime_ns > before.st_mtime_ns  # used last, kept longest
    cached.chmod(0o666)
    with new_session(settings):
        pass
    (cached,) = tmp_path.glob("programs-*.json")
    assert cached.stat().st_ino != before.st_ino
    cached.write_text("{")
    with new_session(settings) as session:
        session.require_essential()


@pytest.mark.lane
def test_a_swapped_map_is_drained_once(cache: Path) -> None:
    """What was added before a drain is in it and in no later one."""
    with new_session(Settings(cache_dir=cache)) as session:
        session.detach()
        pair = session.swapped("flows")
        pair.drain()
        key = bytes(range(pair.inner.spec.key_size))
        pair.active.update(key, (5).to_bytes(8, "little") + (6).to_bytes(8, "little"))
        keys, values = pair.drain()
        assert keys.tobytes() == key
        assert (int(values[0]["tx"]), int(values[0]["rx"])) == (5, 6)
        assert len(pair.drain()[0]) == 0
        assert len(pair.drain()[0]) == 0


@pytest.mark.lane
def test_batch_reads_grow_with_the_map(cache: Path) -> None:
    """5,000 entries come back complete although the first buffer holds 1,024."""
    with new_session(Settings(cache_dir=cache)) as session:
        listeners = maps.BpfMap(session.map("listeners").spec, 8192)
        for number in range(5000):
            listeners.update(number, number * 3)
        for _ in range(2):
            keys, values = listeners.read()
            assert sorted(keys.tolist()) == list(range(5000))
            assert (values["count"] == keys * 3).all()
        assert listeners.lookup(7777) is None
        listeners.delete(7)
        listeners.delete(7)
        assert len(listeners.read()[0]) == 4999
        listeners.close()


def test_sources_that_do_not_compile_say_where(tmp_path: Path) -> None:
    """A compile error carries the compiler's own words, not a traceback."""
    with pytest.raises(KernelError, match=r"did not compile .*undeclared identifier"):
        compiler.compile_text(
            "int f(void *ctx) { return nothing; }\n", ("f",), {}, None, compiler.SOURCES / "include"
        )


def test_programs_use_no_atomic_but_plain_addition(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others need Linux 5.12 to be loaded and LLVM 12 to be compiled; Ubuntu 22.04's BCC has LLVM 11."""
    compiled = []
    compile_sources = compiler.compile_sources

    def keep(*arguments: Any) -> compiler.CompiledObject:
        compiled.append(compile_sources(*arguments))
        return compiled[-1]

    monkeypatch.setattr(compiler, "compile_sources", keep)
    with new_session(Settings(cache_dir=cache)):
        pass
    operations = {
        operation
        for program in compiled[0].programs.values()
        for opcode, _registers, _offset, operation in struct.iter_unpack("<BBhi", program.code)
        if opcode in _ATOMIC
    }
    assert operations == {0}  # BPF_ADD without BPF_FETCH


@pytest.mark.parametrize("content", ["[]", '{"maps": [1], "programs": {"a": 3}}', "\x00\xff", '{"maps": ['])
def test_a_damaged_cache_is_compiled_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """What cannot be read out of the cache is said, ignored and replaced."""
    text = "int f(void *ctx) { return 7; }\n"
    first = compiler.compile_text(text, ("f",), {}, tmp_path, compiler.SOURCES / "include")
    (cached,) = tmp_path.iterdir()
    good = cached.read_bytes()
    cached.write_text(content)
    assert compiler.compile_text(text, ("f",), {}, tmp_path, compiler.SOURCES / "include") == first
    assert len(caplog.records) == 1
    assert str(cached) in caplog.text
    assert cached.read_bytes() == good


@pytest.mark.parametrize("missing", ["module", "library"])
def test_without_bcc_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """No module bcc, or one that does not find its library: PreconditionError, which is exit code 3."""
    package = tmp_path / "bcc"
    package.mkdir()
    source = "raise ModuleNotFoundError(\"No module named 'bcc'\")" if missing == "module" else ""
    (package / "__init__.py").write_text(source)
    (package / "libbcc.py").write_text("import ctypes\nctypes.CDLL('libbcc-missing.so.0')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PreconditionError, match=r"no usable BCC \(.+\): install python3-bpfcc"):
        compiler.compile_text("", (), {}, None, compiler.SOURCES / "include")


def test_settings_reach_the_maps() -> None:
    """Map capacities, kinds and paths of the settings are what the kernel layer gets."""
    made = kernel_options(Settings(max_sockets=128, strategies_off=("fentry",)))
    assert made.capacities["socks"] == 128
    assert made.kinds_off == {"fentry"}
    assert attach.first_of("p", "h").candidates == ()
