"""mkdocs hooks: the pages of docs/reference that are made from the code."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kmaskrcnn import config
from kmaskrcnn.programs.cli import COMMANDS

_log = logging.getLogger("mkdocs.hooks.links")
_ROOT = Path(__file__).parents[1]
_GROUPS = {
    "model": "Model",
    "data": "Data and augmentation",
    "train": "Training",
    "evaluation": "Evaluation and prediction",
}


def on_page_markdown(markdown: str, page, config, **_) -> str:
    """Fill the markers of the reference pages, and point links out of docs/ to the repository."""
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings_tables())
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", command_helps())
    if page.file.src_uri == "index.md":
        markdown = home(markdown)
    return outside_links(markdown, config["repo_url"])


def settings_tables() -> str:
    """Every setting with its default, choices and meaning, a table a group."""
    fields, parts = config.fields(), []
    for group, names in config.groups().items():
        parts += [f"## {_GROUPS[group]}", "", "| setting | default | meaning |", "| --- | --- | --- |"]
        for name in names:
            field, _, is_tuple = fields[name]
            default = ",".join(map(str, field.default)) if is_tuple else str(field.default)
            choices = field.metadata["choices"]
            text = field.metadata["help"] + (f" One of {', '.join(f'`{c}`' for c in choices)}." if choices else "")
            parts.append(f"| `{name}` | {f'`{default}`' if default else ''} | {text.replace('|', '&#124;')} |")
        parts.append("")
    return "\n".join(parts)


def command_helps() -> str:
    """`kmaskrcnn COMMAND --help` of every command."""
    parts = []
    for command, (_, _, text) in COMMANDS.items():
        call = [sys.executable, "-m", "kmaskrcnn", command, "--help"]
        shown = subprocess.run(call, capture_output=True, text=True, check=True, cwd=_ROOT).stdout
        parts += [
            f"## kmaskrcnn {command}",
            "",
            f"{text[0].upper()}{text[1:]}.",
            "",
            "```text",
            shown.rstrip(),
            "```",
            "",
        ]
    return "\n".join(parts)


def home(markdown: str) -> str:
    """README.md as the first page, its links from docs/."""
    readme = re.sub(r"\]\((?!https?:|docs/)", "](../../", (_ROOT / "README.md").read_text())
    return markdown.replace("<!-- readme -->", readme.replace("](docs/", "]("))


def outside_links(markdown: str, repository: str) -> str:
    """Links to files of the repository that are not in docs/, written as ../../PATH, with their address there."""

    def address(match: re.Match) -> str:
        path = _ROOT / match[1]
        if not path.exists():
            _log.warning("dead link to %s in the repository", match[1])  # which fails a strict build
        return f"]({repository}/{'tree' if path.is_dir() else 'blob'}/main/{match[1]})"

    return re.sub(r"\]\(\.\./\.\./([^)#]+)\)", address, markdown)
