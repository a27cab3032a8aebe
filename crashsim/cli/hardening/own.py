"""``crashsim harden --train``: a network of the user's, in several ways that are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crashsim.cli.metrics import labelled_examples
from crashsim.cli.reading import progress_bars, read_model, told_written, write
from crashsim.cli.terminal import present
from crashsim.errors import ArgumentError, Interrupted
from crashsim.noticing import collecting, notice
from crashsim.writing import Named, all_of

_SPLIT = ("digits", "mnist")  # data with a part to train on, and one to test on


def train_inputs(spec: str | None) -> list[Named]:
    """The file of code that the training is read from."""
    file = (spec or "").rpartition(":")[0]
    return [("train", file)] if file.endswith(".py") else []


def harden_own(
    model: str,
    train: str | None,
    data: str,
    out: Path,
    json_file: Path | None,
    report_file: Path | None,
    faults: dict[str, Any],
    epochs: int,
    seed: int,
    weights: str | None,
    trust: bool,
    reset: Any,
    graph: dict[str, Any],
    targets: str | None,
    limit: int | None,
    options: dict[str, Any],
) -> bool:
    """Compares the ways, writes what was asked for and prints it; whether a target is reached."""
    import torch

    from crashsim.training.menu.compare_ways import compare_ways

    held_out = labelled_examples(data, limit, options["batch_axis"], targets)
    # A factory builds from torch's global generator: from the seed, for the same network each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        named = read_model(model, seed, None, weights, reset=reset, trust=trust, graph=graph)
    inputs = held_out.fitted(named.model)
    _tell_of_saturation(named, inputs)
    trained_on, loop = _training(train, named, data, epochs, seed)
    stop = None
    try:
        with progress_bars() as progress, collecting():
            found = compare_ways(
                named.model, trained_on, inputs, faults,
                train=loop, targets=held_out.targets, seed=seed, progress=progress,
                names={"model": model}, **options,
            )  # fmt: skip
    except Interrupted as error:
        stop, found = error, error.partial
    _show(found, out, json_file, report_file)
    if stop is not None:
        raise stop
    return found.target is None or bool(found.reached)


def _training(train: str | None, named: Any, data: str, epochs: int, seed: int) -> tuple[Any, Any]:
    """Clean examples that were trained on, if they are known, and the function that trains."""
    from crashsim.files.data import load_data
    from crashsim.files.users_code import load_function
    from crashsim.training.classifier import Recipe
    from crashsim.training.menu.recipe_training import RecipeTraining

    examples = load_data(data, "train") if data.partition(":")[0].startswith(_SPLIT) else None
    clean = None if examples is None else examples.inputs
    if train is not None:
        return clean, load_function(train, "train")
    if named.architecture is None:
        raise ArgumentError(
            f"train: missing; {named.name!r} is trained by a function of yours, as "
            "path.py:train, which is called train(model, penalty)"
        )
    if examples is None:
        raise ArgumentError(
            f"data={data!r}: has no part to train {named.name!r} on; give digits or mnist:FOLDER, "
            "or --train path.py:train"
        )
    return clean, RecipeTraining(examples, Recipe(epochs=epochs, seed=seed))


def _tell_of_saturation(named: Any, inputs: Any) -> None:
    """Warns where the rate curves of a NIR graph would pass one spike a step."""
    if named.chip is None:
        return
    from crashsim.chip.spiking import saturated_layers

    for message in saturated_layers(named.chip, inputs.double().cpu().numpy()):
        notice(message)


def _show(found: Any, out: Path, json_file: Path | None, report_file: Path | None) -> None:
    from crashsim.files.models import save_weights
    from crashsim.report.hardening import render, to_html
    from crashsim.results.hardening.words import statement

    def as_weights() -> None:
        if found.trained is not None:
            told_written(save_weights(out, found.trained))

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(found.to_dict(), indent=1))

    def as_html() -> None:
        if report_file:
            write("report", report_file, to_html(found))

    all_of(as_weights, as_json, as_html, lambda: present(statement(found), render(found)))
