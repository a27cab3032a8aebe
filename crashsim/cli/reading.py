"""From options to models, data and faults, and from results to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from crashsim.errors import ArgumentError, CrashsimWarning, FileError

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
    """Faults by site from the options."""
    from crashsim.faults import parse_fault

    found: dict[str, Any] = {}
    for spec in specs or ["neuron-crash"]:
        where, fault = parse_fault(spec, default_p=0.01 if p is None else p, group=group)
        site = where or sites or ("weights" if fault.strikes == "weights" else "hidden")
        if site in found:
            raise ArgumentError(f"fault={spec!r}: {site!r} has a fault already; name other sites")
        found[site] = fault
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        return score(
            named.model,
            data.fitted(named.model),
            faults,
            progress=progress,
            names={"model": named.name, "inputs": data.name},
            chip=named.chip,
            **options,
        )


def check_writable(path: Path | None) -> None:
    """Fails before the work, not after it."""
    if path is not None and path.is_dir():
        raise FileError(f"output: {str(path)!r} is a folder; give a file name")


def write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise FileError(f"output: cannot write {str(path)!r} ({error})") from error
    Console(stderr=True).print(f"wrote {path}", style="dim", highlight=False)
