"""The page of every command with its options, from the program itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from crashsim.cli.program import app as program

PAGE = Path("reference/generated/command_line.md")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(app: Any) -> None:
    page = Path(app.srcdir) / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_page())
    if not page.exists() or page.read_text() != text:  # an unchanged page is not built anew
        page.write_text(text)


def _page() -> Iterator[str]:
    group: Any = typer.main.get_command(program)
    yield "# The command line\n"
    yield _prose(group.help)
    for name, command in group.commands.items():
        yield from _command(f"crashsim {name}", command)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield _prose(command.help)
    parts: dict[str, Any] = getattr(command, "commands", {})
    for part, inner in parts.items():
        yield from _command(f"{name} {part}", inner)
    if parts:
        return
    needed = [
        option.name.upper() for option in command.params if option.param_type_name == "argument"
    ]
    yield "\n```\n" + " ".join([name, "[OPTIONS]", *needed]) + "\n```\n"
    panels: dict[str, list[Any]] = {}
    for option in command.params:
        if not option.hidden and option.name != "help":
            panels.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(option)
    for panel, options in panels.items():
        if panel:
            yield f"\n**{panel}**\n"
        for option in options:
            yield from _option(option)
    if command.epilog:
        yield f"\n{_prose(command.epilog)}\n"


def _option(option: Any) -> Iterator[str]:
    """A term and its definition."""
    is_argument = option.param_type_name == "argument"
    if is_argument:
        yield f"`{option.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        yield names if option.is_flag else f"{names} *{_takes(option)}*"
    default = option.default
    shown = default not in (None, False, True, "") and not callable(default) and not is_argument
    after = f" Default: `{default}`." if shown else ""
    yield f": {_inline(option.help or '')}{after}\n"


def _takes(option: Any) -> str:
    """What stands behind an option."""
    annotation = str(option.type_descriptor.annotation)
    words = {"int": "N", "float": "NUMBER", "Path": "FILE"}
    found = option.metavar or next((w for part, w in words.items() if part in annotation), "TEXT")
    return _inline(found) + (" ..." if option.multiple else "")


def _prose(text: str | None) -> str:
    """Paragraphs; those behind a ``\\b`` keep their lines, as examples do."""
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text or "")]
    return "\n\n".join(
        f"```\n{_plain(part.replace(chr(8), '').strip(chr(10)))}\n```"
        if part.lstrip().startswith("\b")
        else _inline(part)
        for part in paragraphs
    )


def _plain(text: str) -> str:
    """Without the markup of rich."""
    return re.sub(r"(?<!\\)\[/?(?:bold|italic|dim|cyan|green|yellow)\]", "", text).replace(
        "\\[", "["
    )


def _inline(text: str) -> str:
    """One paragraph, in which options are set as code."""
    parts = re.split(r"(`[^`]+`)", " ".join(_plain(text).split()))
    return "".join(part if i % 2 else _marked(part) for i, part in enumerate(parts))


def _marked(text: str) -> str:
    escaped = re.sub(r"([*_<>|$])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", escaped)
