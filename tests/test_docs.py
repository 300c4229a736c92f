"""What README, docs and model cards tell people to type: commands and options that exist, links that lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from molgen.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "data/**/*.md", "molgen/weights/*/*.md")
    for page in ROOT.glob(pattern)
)
COMMAND = typer.main.get_command(app)


def commands(text: str) -> list[str]:
    """Lines of code that begin with molgen, continued ones joined, and molgen commands in backquotes."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^(?: {4,}|\t)?(molgen [a-z].*)$", joined, re.MULTILINE)
    return lines + re.findall(r"`(molgen [a-z][^`]*)`", joined.replace("\n", " "))


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest."""
    command: Any = COMMAND
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in commands(text):
        words = [word for word in shlex.split(line, comments=True)[1:] if word != "--debug"]
        command, rest = resolved(words)
        assert command is not COMMAND, f"{page.name}: no such command: {line}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            option = word.split("=")[0]
            if re.match(r"--?[A-Za-z]", option) and option != "--help":
                assert option in known, f"{page.name}: {option} is no option of: {line}"
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", text):
        link = "".join(target)
        assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link} leads nowhere"


def test_wrong_commands_would_be_seen() -> None:
    assert commands("    molgen ts R.xyz \\\n        --nope  # comment\n`molgen data md AG`") == [
        "molgen ts R.xyz  --nope  # comment",
        "molgen data md AG",
    ]
    command, rest = resolved(["data", "md", "AG"])
    assert command.name == "md" and rest == ["AG"]
    assert len(PAGES) > 10 and any(commands(page.read_text(encoding="utf-8")) for page in PAGES)
