"""From options to models, data and faults, and from results to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from crashsim.errors import ArgumentError
from crashsim.noticing import collecting
from crashsim.writing import check_writable, write_text

_SMALL = 2_000_000  # parameters


def console() -> Console:
    return Console()


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show


def read_faults(
    specs: list[str] | None, p: float | None, sites: str | None, group: str | None
) -> dict[str, Any]:
    """Faults by site from the options.

    Raises:
        ArgumentError: a fault that makes no sense, or an option that no fault takes.
    """
    from crashsim.faults import parse_fault

    found: dict[str, Any] = {}
    unused = {"p": p, "sites": sites, "group": group}
    for spec in specs or ["neuron-crash"]:
        where, fault = parse_fault(spec, default_p=0.01 if p is None else p, group=group)
        if where is None:
            unused.pop("sites", None)
            where = sites
        for option in ("p", "group"):
            if hasattr(fault, option) and f"{option}=" not in spec.rpartition(":")[2]:
                unused.pop(option, None)
        if where is None:
            where = "weights" if fault.strikes == "weights" else "hidden"
        if where in found:
            raise ArgumentError(f"fault={spec!r}: {where!r} has a fault already; name other sites")
        found[where] = fault
    for option, value in unused.items():
        if value is not None:
            raise ArgumentError(f"{option}={value!r}: no --fault takes it; leave --{option} out")
    return found


def read_examples(spec: str) -> Any:
    from crashsim.data import load_examples

    return load_examples(spec)


def read_data(spec: str) -> Any:
    from crashsim.data import load_data

    return load_data(spec, "test")


def read_model(
    spec: str,
    seed: int,
    train: str | None = None,
    weights: str | None = None,
    inits: int = 1,
    reset: Literal["subtract", "zero"] | None = None,
) -> Any:
    """The named model, trained if asked for."""
    import torch

    from crashsim.data import load_data
    from crashsim.files import load_model
    from crashsim.training import Recipe, train_classifier

    named = load_model(spec, seed=seed, weights=weights, reset=reset)
    if "OMP_NUM_THREADS" not in os.environ and _size(named.model) < _SMALL:
        torch.set_num_threads(1)  # a small network loses more to threads than it gains
    if inits > 1 and named.architecture is None:
        raise ArgumentError(f"inits={inits}: {spec!r} is one set of weights; use an architecture")
    if train is not None and not named.trained:
        with progress_bars() as progress:
            train_classifier(
                named.model,
                load_data(train, "train"),
                Recipe(seed=seed),
                lambda done, total: progress("training", done, total),
            )
    elif train is not None:
        raise ArgumentError(f"train={train!r}: {spec!r} has weights already; use an architecture")
    return named


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def score_model(
    named: Any,
    data: Any,
    faults: dict[str, Any],
    progress: Callable[[str, int, int], None],
    **options: Any,
) -> Any:
    """The score of a model; its warnings stay in it, for whoever shows it."""
    from crashsim.scoring import score

    with collecting():
        return score(
            named.model,
            data.fitted(named.model),
            faults,
            progress=progress,
            names={"model": named.name, "inputs": data.name},
            chip=named.chip,
            **options,
        )


def check_outputs(**files: Path | None) -> None:
    """Fails before the work, not after it, where a file cannot be written; by option."""
    for option, path in files.items():
        check_writable(option, path)
    paths = [path.resolve() for path in files.values() if path is not None]
    if len(set(paths)) < len(paths):
        raise ArgumentError(
            f"{' and '.join(files)}: the same file {str(paths[0])!r}; give each its own"
        )


def write(option: str, path: Path, text: str) -> None:
    write_text(option, path, text)
    told_written(path)


def told_written(path: Path) -> None:
    Console(stderr=True).print(f"wrote {path}", style="dim", highlight=False, markup=False)
