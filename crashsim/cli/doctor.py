"""``crashsim doctor``: what is installed, what is missing, and the command that installs it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import typer
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from crashsim.cli.terminal import console
from crashsim.visible import visible

_MODULES = {"scikit-learn": "sklearn"}  # where a module has another name than its package
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        told = "fine"
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
    print(name, told, sep="\\t", flush=True)
"""


@dataclass(frozen=True)
class Check:
    """A package that crashsim needs, or that an extra of it does.

    Attributes:
        name: of the package.
        wanted: the versions that serve, as in ``pyproject.toml``.
        extra: the extra that brings it; empty for what is always installed.
        version: what is installed; None for nothing.
        problem: why it does not serve; empty if it does.
    """

    name: str
    wanted: str
    extra: str
    version: str | None
    problem: str

    @property
    def command(self) -> str:
        """What installs it."""
        if self.extra:
            return f'pip install "crashsim[{self.extra}]"'
        return f'pip install "{self.name}{self.wanted}"'


def checks() -> list[Check]:
    """Every package that crashsim's own metadata names for this Python, looked up and imported."""
    found = []
    for text in metadata.requires("crashsim") or []:
        requirement = Requirement(text)
        extra = next((e for e in _extras() if _is_of(requirement, e)), "")
        if extra or requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(_looked_up(requirement, extra))
    failures = _import_failures([check.name for check in found if not check.problem])
    found = [replace(c, problem=failures.get(c.name, c.problem)) for c in found]
    return sorted(found, key=lambda check: (check.extra, check.name.lower()))


def _extras() -> list[str]:
    return metadata.metadata("crashsim").get_all("Provides-Extra") or []


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and (
        marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
    )


def _looked_up(requirement: Requirement, extra: str) -> Check:
    wanted = str(requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, wanted, extra, None, "missing")
    serves = requirement.specifier.contains(version, prereleases=True)
    return Check(requirement.name, wanted, extra, version, "" if serves else f"needs {wanted}")


def _import_failures(packages: Sequence[str]) -> dict[str, str]:
    """Which of these do not import, and why: tried in a process of its own."""
    modules = {_MODULES.get(name, name): name for name in packages}
    told = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *modules], capture_output=True, text=True, check=False
    ).stdout
    reasons = dict(line.split("\t", 1) for line in told.splitlines() if "\t" in line)
    return {
        name: f"does not import: {reasons.get(module, 'it ends the process')}"
        for module, name in modules.items()
        if reasons.get(module) != "fine"
    }


def doctor() -> None:
    """Check the installation: versions, devices, extras, and what is missing.

    Exit code 1 if something that crashsim always needs is missing or broken.
    """
    found = checks()
    table = Table(box=None, pad_edge=False)
    for title in ("package", "version", "for", "state"):
        table.add_column(title, overflow="fold")
    for check in found:
        purpose = f"extra {check.extra}" if check.extra else "crashsim"
        state = visible(f"{check.problem}: {check.command}" if check.problem else "fine")
        table.add_row(check.name, check.version or "-", purpose, escape(state))
    out = console()
    out.print(f"crashsim {metadata.version('crashsim')}, Python {platform.python_version()}")
    out.print(f"{platform.platform()}, {sys.executable}", soft_wrap=True)
    out.print(f"torch computes on: {', '.join(_devices())}")
    out.print(table)
    broken = [check.name for check in found if check.problem and not check.extra]
    if broken:
        out.print(f"broken: {', '.join(broken)}; the commands above mend that")
        raise typer.Exit(1)
    out.print("everything that crashsim needs is there")


def _devices() -> list[str]:
    try:
        import torch
    except Exception:  # the table says what is wrong with it
        return ["nothing"]
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *cuda, *mps]
