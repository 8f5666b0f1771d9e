# SPDX-License-Identifier: Apache-2.0
"""What is written about the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from kernob import cli
from kernob.probes import PROBES
from kernob.probes.traffic import Loss
from scripts import metrics_doc

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "*.md", "*.yaml", "docs/**/*.md", "victoriametrics/**/*.*", "grafana/**/*.md", "grafana/boards/*.py",
    "benchmarks/*.md", "compose/*.yaml", ".env.example",
)  # fmt: skip
PAGES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
COMMAND = re.compile(rf"(?<![-\w/.])kernob ({'|'.join(cli.kernob.commands)})((?: (?!kernob )[^\s`|#>;]+)*)")
"""A command, and the words after it up to where code or a sentence ends."""


def test_the_metrics_page_is_what_the_code_specifies() -> None:
    """docs/metrics.md is the generator's output, to the letter."""
    assert metrics_doc.TARGET.read_text(encoding="utf-8") == metrics_doc.document()


def test_losses_have_the_kernel_sides_order() -> None:
    """enum loss of bpf/types.h and Loss name the same indices."""
    text = (ROOT / "bpf" / "types.h").read_text(encoding="utf-8")
    body = re.search(r"enum loss \{(.*?)\}", text, re.DOTALL)
    assert body
    names = re.findall(r"LOSS_(\w+)", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    assert names == [*(loss.name for loss in Loss), "MAX"]


def test_every_program_a_hook_names_is_in_the_sources() -> None:
    """Programs that probes ask for exist in bpf/."""
    for probe in PROBES:
        text = "".join((ROOT / "bpf" / name).read_text(encoding="utf-8") for name in probe.sources)
        written = set(re.findall(r"^(?:int |PROGRAM\()(\w+)", text, re.MULTILINE))
        asked = {a.program for hook in probe.hooks for c in hook.candidates for a in c.attachments}
        assert asked <= written


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link in README and docs/ names a file that is there."""
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def options_of(words: list[str], command: click.Command) -> list[tuple[str, str]]:
    """Options among the words with their values, "" for flags. Fails where the command has no such option."""
    known = {name: each for each in command.params if isinstance(each, click.Option) for name in each.opts}
    found = []
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if not name.startswith("-"):
            continue
        assert name in {*known, "-h", "--help"}, f"{command.name} has no {name}"
        if name in known and not known[name].is_flag:
            value = value or " ".join(words[place + 1 : place + 2])
            if value and "{" not in value and not value.isupper():
                known[name].type.convert(value, known[name], None)
        found.append((name, value))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_can_be_typed(path: Path) -> None:
    """Whoever copies one out of a page, an alert or a panel at night gets no usage error."""
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    for name, words in COMMAND.findall(text):
        options_of(words.rstrip(".,:)").split(), cli.kernob.commands[name])


@pytest.mark.parametrize("name", cli.kernob.commands)
def test_every_example_of_a_help_page_can_be_typed(name: str) -> None:
    """As above."""
    text = re.sub(r"\s+", " ", f"{cli.kernob.commands[name].help} {cli.kernob.help}")
    assert f"kernob {name}" in text or isinstance(cli.kernob.commands[name], click.Group)
    for shown, words in COMMAND.findall(text):
        options_of(words.split(), cli.kernob.commands[shown])


def test_a_command_that_cannot_be_typed_is_found() -> None:
    """An option that is gone, and a value that is none: the check above would see both."""
    events = cli.kernob.commands["events"]
    assert options_of(["--since", "2h", "--json"], events) == [("--since", "2h"), ("--json", "")]
    with pytest.raises(AssertionError, match="events has no --sort"):
        options_of(["--sort", "x"], events)
    with pytest.raises(click.BadParameter):
        options_of(["--kind", "kernob.tcp.reset"], events)
