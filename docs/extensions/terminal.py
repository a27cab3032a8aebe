"""Commands that run when the site is built, with what they print: ``{terminal}`` and ``{file}``.

The blocks of a page share a folder and run in their order, each command as it is printed. What they
print is kept in ``docs/_build/terminal`` until their text, or that of a block before, changes. A
command that fails fails the page.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COLUMNS = 80


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("terminal", Terminal)
    app.add_directive("file", File)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class _Shared(SphinxDirective):
    """A block of a page: its folder, and a key of all blocks so far."""

    has_content = True

    def begin(self) -> tuple[Path, Path]:
        """The folder to run in, and where what this block prints is kept."""
        before = self.env.temp_data.get("terminal", "")
        text = "\n".join([before, *self.arguments, *self.content])
        key = self.env.temp_data["terminal"] = hashlib.sha256(text.encode()).hexdigest()
        folder = Path(self.env.app.outdir).parent / "terminal" / self.env.docname
        kept = folder / "printed" / key
        if not before and not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        kept.parent.mkdir(exist_ok=True)
        return work, kept

    def block(self, text: str, language: str) -> nodes.Node:
        block = nodes.literal_block(text, text, language=language)
        self.set_source_info(block)
        return block


class Terminal(_Shared):
    """Commands, one a line (or more, with a backslash), shown with what they print."""

    def run(self) -> list[nodes.Node]:
        work, kept = self.begin()
        if not kept.exists():
            commands = "\n".join(self.content).replace("\\\n", "\\\0").splitlines()
            kept.write_text("".join(self._shown(command, work) for command in commands))
        return [self.block(kept.read_text().rstrip(), "console")]

    def _shown(self, command: str, work: Path) -> str:
        command = command.replace("\\\0", "\\\n")
        environment = os.environ | {
            "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb", "TTY_COMPATIBLE": "0",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", command], cwd=work, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise self.severe(f"{command!r} ended with {done.returncode}:\n{done.stdout}")
        printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        return f"$ {command}\n{printed}\n" if printed else f"$ {command}\n"


class File(_Shared):
    """A file that the commands of the page read: ``{file} NAME``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        work, kept = self.begin()
        text = "\n".join(self.content) + "\n"
        (work / self.arguments[0]).write_text(text)
        kept.touch()
        language = {".toml": "toml", ".py": "python"}.get(Path(self.arguments[0]).suffix, "text")
        return [self.block(text, language)]
