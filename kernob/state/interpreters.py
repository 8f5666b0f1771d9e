# SPDX-License-Identifier: Apache-2.0
"""Which program an interpreter runs: the script, module, jar or main class of a command line.

In: a sanitised executable name, comm and arguments. Out: a name, never a PID and never a port.
Called by `services`. The grammars are data: what each interpreter's own manual says of its options.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kernob.state.text import CUT_MARK


@dataclass(frozen=True, slots=True)
class Grammar:
    """How one family of interpreters reads its arguments, up to the program it runs.

    `clusters`: one dash is followed by one-letter options, several at a time (-Im pkg); otherwise by a
    word (-classpath). One-letter options: `values` take the rest of the word or the next argument,
    `attached` only the rest, `code` program text, `modules` and `scripts` the target itself. `word_*`
    are the same for whole words, dashes included. `skipped` are subcommands before the target.
    """

    family: str
    pattern: re.Pattern[str]
    clusters: bool = True
    values: str = ""
    attached: str = ""
    code: str = ""
    modules: str = ""
    scripts: str = ""
    word_values: frozenset[str] = field(default_factory=frozenset)
    word_code: frozenset[str] = field(default_factory=frozenset)
    word_targets: frozenset[str] = field(default_factory=frozenset)
    word_modules: frozenset[str] = field(default_factory=frozenset)
    skipped: frozenset[str] = field(default_factory=frozenset)
    commands: frozenset[str] = field(default_factory=frozenset)


_COMM_CHARACTERS = 15  # TASK_COMM_LEN less the final NUL


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern + r"\Z")


_VERSION = r"-?\d*(\.\d+)*"
_SHELL = Grammar(
    "sh",
    _named(rf"(ba|rba|da|a|z|k|mk|pdk|fi)?sh{_VERSION}"),
    values="oO",
    code="cs",  # -s reads standard input: what follows are its parameters
    word_values=_words("--rcfile --init-file --emulate"),
)
_JAVA = Grammar(
    "java",
    _named("java"),
    clusters=False,
    word_values=_words(
        "-cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules --add-exports"
        " --add-opens --add-reads --limit-modules --patch-module --source -d --describe-module"
    ),
    word_targets=_words("-jar"),
    word_modules=_words("-m --module"),
)
_GRAMMARS: tuple[Grammar, ...] = (
    Grammar(
        "python",
        _named(r"(python|pypy)(\d+(\.\d+)*)?(t?d?m?u?|w)(-dbg)?"),
        values="WXQ",
        code="c",
        modules="m",
        word_values=_words("--check-hash-based-pycs"),
    ),
    Grammar(
        "node",
        _named(r"node(js)?\d*"),
        clusters=False,
        word_values=_words(
            "-r --require --import --loader --experimental-loader -C --conditions --env-file"
            " --env-file-if-exists --title --icu-data-dir --openssl-config --input-type --redirect-warnings"
            " --diagnostic-dir --report-dir --report-directory --report-filename --report-signal"
            " --cpu-prof-dir --cpu-prof-name --heap-prof-dir --heapsnapshot-signal --watch-path"
            " --unhandled-rejections --dns-result-order --trace-event-categories --stack-trace-limit"
            " --trace-event-file-pattern --max-http-header-size --max-old-space-size --max-semi-space-size"
            " --inspect-port --debug-port --tls-cipher-list --tls-keylog --disable-warning"
        ),
        word_code=_words("-e --eval -p --print -pe -i --interactive"),
        word_targets=_words("--run"),
        skipped=_words("inspect debug"),
    ),
    _JAVA,
    Grammar(
        "ruby",
        _named(rf"j?ruby{_VERSION}"),
        values="CEIrX",
        attached="KWTFix",
        code="e",
        word_values=_words(
            "--encoding --external-encoding --internal-encoding --enable --disable --backtrace-limit"
        ),
    ),
    Grammar(
        "php",
        _named(rf"php(-cgi)?{_VERSION}"),
        values="cdztS",
        code="rBRE",
        scripts="fF",
        word_values=_words("--php-ini --define --zend-extension --docroot --server"),
        word_code=_words("--run --process-begin --process-code --process-end"),
        word_targets=_words("--file --process-file"),
    ),
    Grammar("perl", _named(rf"perl{_VERSION}"), values="I", attached="MmFixCdDV", code="eE"),
    _SHELL,
    Grammar(
        "deno",
        _named("deno"),
        clusters=False,
        word_values=_words("-c --config --import-map --lock --cert --location --seed --port --host"),
        skipped=_words("run serve"),
        commands=_words("eval repl task test install cache lsp"),
    ),
    Grammar(
        "bun",
        _named("bun"),
        clusters=False,
        word_values=_words("-r --preload --cwd -c --config --env-file --port"),
        word_code=_words("-e --eval -p --print"),
        skipped=_words("run x"),
        commands=_words("install add test build repl"),
    ),
    Grammar(
        "dotnet",
        _named("dotnet"),
        clusters=False,
        word_values=_words("--additionalprobingpath --depsfile --runtimeconfig --fx-version --roll-forward"),
        skipped=_words("exec"),
        commands=_words("run build test watch restore publish tool"),
    ),
)

_MULTI_CALL = frozenset(("busybox", "toybox", "coreutils"))

HEADS = tuple(
    head.encode()
    for head in [
        "pyth",
        "pypy",
        "node",
        "java",
        "ruby",
        "jrub",
        "php",
        "php-",
        "perl",
        "sh",
        "bash",
        "rbas",
        "dash",
        "ash",
        "zsh",
        "ksh",
        "mksh",
        "pdks",
        "fish",
        "deno",
        "bun",
        "dotn",
        "busy",
        "toyb",
        "core",
        "env",
    ]
) + tuple(f"{name}{digit}".encode() for name in ("php", "sh") for digit in range(1, 10))
"""Where names of executables begin whose arguments tell what they run: the first four bytes, or all of
them."""

_SAME_PROGRAM = {"sshd-session": "sshd", "sshd-auth": "sshd"}
_UNTOLD_EXECUTABLES = frozenset(("", "?", "exe"))
_UNTOLD_COMMS = frozenset(("", "?", "MainThread", "node-MainThread", "exe"))
_COMMON_CLASSES = _words(
    "App Application Bootstrap Boot JarLauncher Launcher Main Program Runner Server Start Starter"
)
_PM2_CONTAINERS = frozenset(("ProcessContainer.js", "ProcessContainerFork.js"))
_TITLE_WORD = re.compile(r"[\[(]*([\w.+@/-]+)")


@functools.lru_cache(512)
def grammar_of(name: str) -> Grammar | None:
    """The grammar of an interpreter by its executable's name, such as "python3.11"; None for others."""
    for grammar in _GRAMMARS:
        if grammar.pattern.match(name):
            return grammar
    return None


def base(path: str) -> str:
    """Last part of a path, without what the kernel adds to a deleted file and without a memfd's frame."""
    path = path.removesuffix(" (deleted)")
    if path.removeprefix("/").startswith("memfd:"):
        return path.split(":", 2)[1]
    return PurePosixPath(path).name


def program_name(executable: str, comm: str, args: tuple[str, ...]) -> str:
    """What to call a process outside containers and units; "" when nothing at all is known.

    The executable's name; for an interpreter what it runs, and its family ("python") when that
    cannot be told: -c, standard input, or a command line cut short before the target's end.
    """
    # No executable's name has a slash; a kernel thread's comm that stands in for it may.
    name = "" if executable == comm and "/" in comm else base(executable)
    argv = list(args)
    while argv and not argv[-1]:
        argv.pop()
    if name in _UNTOLD_EXECUTABLES:
        if not (argv and argv[0]):
            return comm.partition("/")[0]  # kernel threads: kworker/0:1 is no lasting name
        name = _title(argv[0]) or comm
    if name in _MULTI_CALL:
        name, argv = _applet(name, argv)
    grammar = grammar_of(name)
    if grammar is None:
        return _SAME_PROGRAM.get(name) or _called(comm, argv) or name
    return _interpreted(grammar, comm, argv) or _bare(grammar, name, argv)


def _called(comm: str, argv: list[str]) -> str:
    """The name a program was started by, where it is a link: redis-server, not redis-check-rdb.

    Only when comm, which the kernel took from that name, and the first argument agree, so that neither
    a thread's name nor a title ("php-fpm: pool www") is taken for it.
    """
    called = base(argv[0]).lstrip("-") if argv else ""
    if called[:_COMM_CHARACTERS] != comm:
        called = _title(argv[0]) if argv else ""
    return called if called and called[:_COMM_CHARACTERS] == comm else ""


def cut_short(executable: str, args: tuple[str, ...]) -> bool:
    """Whether a longer command line could tell more of an interpreter's program than `args` does."""
    grammar = grammar_of(base(executable))
    return (
        grammar is not None
        and bool(args)
        and args[-1].endswith(CUT_MARK)
        and (not _interpreted(grammar, "", list(args)))
    )


def _applet(name: str, argv: list[str]) -> tuple[str, list[str]]:
    """Program and arguments behind a multi-call binary: "busybox wget x" and "wget x" are wget."""
    if argv and base(argv[0]) in _MULTI_CALL:
        argv = argv[1:]
    return (base(argv[0]).lstrip("-") or name, argv) if argv else (name, argv)


def _bare(grammar: Grammar, name: str, argv: list[str]) -> str:
    """An interpreter's own name: its family, so that an update of python3.11 renames nothing."""
    if grammar is not _SHELL:
        return grammar.family
    called = base(argv[0]).lstrip("-") if argv else name
    return called if _SHELL.pattern.match(called) else name


def _interpreted(grammar: Grammar, comm: str, argv: list[str]) -> str:
    """Name of what an interpreter runs, or ""."""
    if not argv:
        told = comm not in _UNTOLD_COMMS and grammar_of(comm) is None
        return comm if told else ""  # a script with a #! line gives the process its own name
    called = base(argv[0]).lstrip("-")
    if called == "env":
        argv = _after_env(argv)
        called = base(argv[0]) if argv else ""
    if grammar_of(called) is None:
        words = argv[0].split() if argv else []
        if len(words) < 2 or grammar_of(base(words[0])) is None:
            return _title(argv[0]) if argv else ""
        argv = [word.removesuffix(":") for word in words]  # pm2's title: "node /srv/shop/app.js"
    if grammar.family == "java":
        return _java_target(argv)
    target, index, is_module = _target(grammar, argv)
    if not target or target.endswith(CUT_MARK):
        return ""
    if is_module:
        return target.removesuffix(".__main__")
    return _script(grammar, target, argv[index + 1 :])


def _after_env(argv: list[str]) -> list[str]:
    """Arguments from the interpreter's name on, past env, its options and its assignments."""
    for index, arg in enumerate(argv[1:], 1):
        if grammar_of(base(arg)) is not None:
            return argv[index:]
    return []


def _title(text: str) -> str:
    """First word of a title a program wrote over its arguments: "gunicorn: master [x]" is gunicorn."""
    match = _TITLE_WORD.match(text)
    if match is None or text[match.end() :] == CUT_MARK:
        return ""
    name = base(match.group(1))
    return "" if name.isdigit() else name


def _script(grammar: Grammar, target: str, rest: list[str]) -> str:
    """Basename of a script's path, or of what tells more than it does."""
    path = PurePosixPath(target)
    name = path.name
    if grammar.family == "python" and name == "__main__.py":
        return path.parent.name
    if grammar.family == "ruby" and name in ("bundle", "bundler") and rest[:1] == ["exec"]:
        run = next((arg for arg in rest[1:] if not arg.startswith("-")), name)
        return "" if run.endswith(CUT_MARK) else PurePosixPath(run).name
    if grammar.family == "dotnet" and path.suffix not in (".dll", ".exe"):
        return ""
    if name in _PM2_CONTAINERS or not name.strip(".") or target.startswith(("/dev/", "/proc/")):
        return ""  # bash <(curl x) runs /dev/fd/63
    return name


def _target(grammar: Grammar, argv: list[str]) -> tuple[str, int, bool]:
    """The program's place in `argv`: (text, index, whether it names a module); text "" when untold."""
    index = 1
    while index < len(argv):
        arg = argv[index]
        if arg == "--":
            return (argv[index + 1] if index + 1 < len(argv) else "", index + 1, False)
        if arg == "-":
            return ("", index, False)
        is_option = arg.startswith("-") or (arg.startswith("+") and grammar is _SHELL)
        if not is_option:
            if arg in grammar.commands:
                return ("", index, False)
            if not arg or arg in grammar.skipped or (arg.isdigit() and argv[index - 1].startswith("--")):
                index += 1  # a number after an option we do not know is its value, never a program
                continue
            return (arg, index, False)
        option = _cluster if grammar.clusters and not arg.startswith("--") else _word
        target, used, is_module = option(grammar, argv, index)
        if target is not None:
            return (target, index + used - 1, is_module)
        index += used
    return ("", index, False)


def _word(grammar: Grammar, argv: list[str], index: int) -> tuple[str | None, int, bool]:
    """Read one whole-word option: (target or None to go on, arguments used, whether it is a module)."""
    option, equals, value = argv[index].partition("=")
    option = option.replace("_", "-")
    if option in grammar.word_code:
        return ("", 1, False)
    if option in grammar.word_targets or option in grammar.word_modules:
        if not equals:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        return (value, 1 if equals else 2, option in grammar.word_modules)
    return (None, 2 if option in grammar.word_values and not equals else 1, False)


def _cluster(grammar: Grammar, argv: list[str], index: int) -> tuple[str | None, int, bool]:
    """Read one-letter options such as -uIm: (target or None to go on, arguments used, is a module)."""
    letters = argv[index][1:]
    for place, letter in enumerate(letters):
        rest = letters[place + 1 :]
        if letter in grammar.code:
            return ("", 1, False)
        if letter in grammar.modules or letter in grammar.scripts:
            value = rest or (argv[index + 1] if index + 1 < len(argv) else "")
            return (value, 1 if rest else 2, letter in grammar.modules)
        if letter in grammar.values:
            return (None, 1 if rest else 2, False)
        if letter in grammar.attached:
            return (None, 1, False)
    return (None, 1, False)


def _java_target(argv: list[str]) -> str:
    """Jar, module or main class; a class of a name that says nothing, such as Main, in full."""
    target, index, is_module = _target(_JAVA, argv)
    if not target or target.endswith(CUT_MARK):
        return ""
    if is_module:
        module, _, target = target.partition("/")
        if not target:
            return module
    elif argv[index - 1] == "-jar" or "/" in target or target.endswith(".java"):
        return PurePosixPath(target).name
    simple = target.rpartition(".")[2]
    return target if simple in _COMMON_CLASSES or not simple else simple
