"""Pages of every public name, from the packages themselves: one page for a folder of code.

A name is on the page of the folder (or module) that defines it, whose docstring's first line is
what the page is about. So a new public name has its place without being listed anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from docstrings import as_rest

FOLDER = Path("reference/generated")
PACKAGES = {
    "crashsim": "What people import and run.",
    "crashsim_theory": "Symbolic bounds and proofs: sympy, numpy and scipy, no torch.",
    "crashsim_hardware": "The spiking chip: numpy and brian2, no torch.",
}


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(app: Any) -> None:
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for package, about in PACKAGES.items():
        pages = _names_by_page(package)
        _write(folder / f"{package}.md", _index(package, about, pages))
        for module, names in pages.items():
            _write(folder / f"{module}.md", _page(package, module, names))


def _write(page: Path, text: str) -> None:
    if not page.exists() or page.read_text() != text:  # an unchanged page is not built anew
        page.write_text(text)


def _names_by_page(package: str) -> dict[str, list[str]]:
    """For each folder of the package, the public names that it defines."""
    found = import_module(package)
    pages: dict[str, list[str]] = {}
    for name in found.__all__:
        value = getattr(found, name)
        home = getattr(value, "__module__", "")
        inside = home.startswith(package + ".")
        pages.setdefault(".".join(home.split(".")[:2]) if inside else package + ".values", [])
        pages[".".join(home.split(".")[:2]) if inside else package + ".values"].append(name)
    return dict(sorted(pages.items()))


def _index(package: str, about: str, pages: dict[str, list[str]]) -> str:
    lines = [f"# {package}", "", about, "", "| names | what is there |", "|---|---|"]
    for module, names in pages.items():
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {listed} | [{_title(module)}]({module}.md) |")
    lines += ["", "```{toctree}", ":hidden:", "", *pages, "```", ""]
    return "\n".join(lines)


def _title(module: str) -> str:
    return module.split(".")[1].replace("_", " ").capitalize()


def _page(package: str, module: str, names: list[str]) -> str:
    lines = [f"# {_title(module)}", ""]
    if not module.endswith(".values"):
        document = inspect.getdoc(import_module(module)) or ""
        summary = as_rest(document.split("\n\n")[0].splitlines())
        lines += ["```{eval-rst}", *summary, "```", ""]
    for name in names:
        lines += ["```{eval-rst}", *_directive(package, name), "```", ""]
    return "\n".join(lines)


def _directive(package: str, name: str) -> list[str]:
    value = getattr(import_module(package), name)
    if inspect.isclass(value):
        options = [] if issubclass(value, Exception | Warning) else ["   :members:"]
        if value.__bases__ != (object,):
            options.append("   :show-inheritance:")
        return [f".. autoclass:: {package}.{name}", *options]
    if callable(value):
        return [f".. autofunction:: {package}.{name}"]
    listed = sorted(value) if isinstance(value, Mapping) else value
    shown = repr(listed) if isinstance(listed, list | tuple | float) else type(value).__name__
    return [f".. py:data:: {package}.{name}", "", f"   ``{shown}``"]
