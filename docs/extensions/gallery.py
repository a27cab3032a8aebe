"""The gallery: every example with the question that it answers, what it prints, and its picture.

The scripts run as a user runs them, in sizes that take seconds; what they print and draw is kept in
``docs/_build/gallery`` until the script or its arguments change.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.util import logging

ROOT = Path(__file__).parents[2]
PAGES = Path("gallery")
# In the order of the gallery, with arguments that make each one quick; others follow as they are.
EXAMPLES = {
    "score_a_model.py": "",
    "onnx_model.py": "--epochs 8 --samples 300",
    "accuracy_curve.py": "--epochs 10 --chips 100",
    "accuracy_under_faults.py": "--epochs 10 --chips 400",
    "compare_architectures.py": "--inits 3 --epochs 8 --samples 500",
    "loss_under_faults.py": "--epochs 6 --samples 600",
    "convolution_weights.py": "--epochs 4 --samples 500",
    "float_words.py": "--epochs 6 --samples 600",
    "vulnerability_map.py": "--epochs 6 --limit 16",
    "protect_a_cnn.py": "--epochs 8 --chips 60",
    "harden_your_own.py": "--epochs 4 --chips 60",
    "spiking_training.py": "--epochs 6 --samples 500",
    "spiking_chip.py": "--epochs 10 --inputs 6",
    "chip_faults.py": "--epochs 6 --inputs 4 --masks 60",
    "events_on_a_chip.py": "--epochs 10 --inputs 30 --masks 20 --steps 60",
}
told = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A script, what it asks, and where what it showed is kept."""

    script: Path
    arguments: str
    kept: Path

    @property
    def name(self) -> str:
        return self.script.stem

    @property
    def words(self) -> list[str]:
        """The question, and what is said of it."""
        document = ast.get_docstring(ast.parse(self.script.read_text())) or ""
        question, _, rest = document.partition("\n\n")
        return [" ".join(question.split()), rest]

    @property
    def draws(self) -> bool:
        return '"--figure"' in self.script.read_text()

    @property
    def key(self) -> str:
        text = self.script.read_text() + self.arguments
        return hashlib.sha256(text.encode()).hexdigest()


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(app: Any) -> None:
    folder, kept = Path(app.srcdir) / PAGES, Path(app.outdir).parent / "gallery"
    folder.mkdir(exist_ok=True)
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    for name in sorted(EXAMPLES.keys() - scripts):
        told.warning("%s is in the gallery, and not in examples/", name)
    examples = [
        Example(ROOT / "examples" / name, EXAMPLES.get(name, ""), kept / Path(name).stem)
        for name in [*EXAMPLES, *sorted(scripts - EXAMPLES.keys())]
        if name in scripts
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_run, examples))
    for example in examples:
        _write(folder / f"{example.name}.md", _page(example))
        if example.draws:
            shutil.copyfile(example.kept / "figure.png", folder / f"{example.name}.png")
    _write(folder / "index.md", _index(examples))


def _run(example: Example) -> None:
    state = example.kept / "state.json"
    if state.exists() and json.loads(state.read_text())["key"] == example.key:
        return
    shutil.rmtree(example.kept, ignore_errors=True)
    example.kept.mkdir(parents=True)
    command = [sys.executable, str(example.script), *example.arguments.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "88", "NO_COLOR": "1"}
    done = subprocess.run(
        [*command, *(["--figure", "figure.png"] if example.draws else [])],
        cwd=example.kept, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode or example.draws > (example.kept / "figure.png").exists():
        told.warning("%s fails:\n%s", example.script.name, done.stderr)
        return
    state.write_text(json.dumps({"key": example.key, "printed": done.stdout}))


def _write(page: Path, text: str) -> None:
    if not page.exists() or page.read_text() != text:  # an unchanged page is not built anew
        page.write_text(text)


def _page(example: Example) -> str:
    question, rest = example.words
    printed = json.loads((example.kept / "state.json").read_text())["printed"]
    prose = "\n\n".join(part for part in rest.split("\n\n") if "python examples/" not in part)
    shown = " ".join(["python", f"examples/{example.script.name}", example.arguments]).strip()
    return f"""# {question}

{prose}

{f"![{question}]({example.name}.png)" if example.draws else ""}

```console
$ {shown}
{printed.rstrip()}
```

In these sizes it takes seconds; without arguments it is more careful.
{{download}}`Download the script <../../examples/{example.script.name}>`.

```{{literalinclude}} ../../examples/{example.script.name}
:language: python
```
"""


def _index(examples: list[Example]) -> str:
    cards = "\n\n".join(
        f""":::{{grid-item-card}} {example.words[0]}
:link: {example.name}
:link-type: doc
{f":img-top: {example.name}.png" if example.draws else ""}
:::"""
        for example in examples
    )
    listed = "\n".join(example.name for example in examples)
    return f"""# Examples

Each script answers a question. It ran in a small size when this site was built; what it printed
and drew is on its page, and the script is yours to change. The experiments of the paper have
[a page of their own](../about/paper.md).

::::{{grid}} 1 1 2 2
:gutter: 3

{cards}
::::

```{{toctree}}
:hidden:

{listed}
```
"""
