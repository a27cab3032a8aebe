"""The command line. Each command reads its arguments, calls the library and shows the result."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from crashsim.errors import ArgumentError, CrashsimError, CrashsimWarning, FileError

# torch, sympy and the rest load inside the commands, so that --help is immediate.

app = typer.Typer(
    name="crashsim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How far a neural network's output moves when its hardware fails at random.\n\n"
    "Start with: [bold]crashsim score 64-100-50-10:sigmoid --train digits[/bold]",
)

MODEL_HELP = (
    "An architecture (64-100-50-10:sigmoid), a model from `crashsim train`, a torch.export .pt2 "
    "file, or package.module:factory or path.py:factory (runs that code)."
)
FAULT_HELP = (
    "[SITES=]KIND[:NAME=VALUE,...], repeatable. Kinds: neuron-crash, weight-crash, stuck-at, "
    "sign-flip, bit-flip, gain-noise, additive-noise. For example: 'conv*=neuron-crash:p=0.01' "
    "or 'gain-noise:std=0.1'."
)

ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelsArgument = Annotated[list[str], typer.Argument(help=MODEL_HELP)]
InputsOption = Annotated[
    str,
    typer.Option(
        help="Examples: digits, digits-images, mnist:FOLDER, mnist-images:FOLDER, or a .npy or "
        ".npz file."
    ),
]
LimitOption = Annotated[int, typer.Option(min=1, help="Use the first so many inputs.")]
FaultOption = Annotated[list[str] | None, typer.Option(help=FAULT_HELP)]
POption = Annotated[
    float | None,
    typer.Option(help="Probability of the fault, where --fault gives none. (default 0.01)"),
]
SitesOption = Annotated[
    str | None,
    typer.Option(
        help="Where: hidden, input, weights, or a name or glob. (default: hidden; "
        "weights for faults of weights)"
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        help="Neurons that crash together: unit, channel, or a number (a core). (default: unit)"
    ),
]
EpsilonOption = Annotated[
    float | None, typer.Option(help="Also P(|change| >= EPSILON), in units of the outputs.")
]
SamplesOption = Annotated[
    int | None, typer.Option(help="Monte Carlo samples. (default: 10000, fewer for large models)")
]
RelWidthOption = Annotated[
    float | None, typer.Option(help="Sample until variances are known to this relative width.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same numbers.")]
TrainOption = Annotated[
    str | None, typer.Option(help="Train an architecture on this data first (digits, ...).")
]
WeightsOption = Annotated[
    str | None, typer.Option(help="State dict for a factory's model (.safetensors or .pt).")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")]


@app.command()
def score(
    model: ModelArgument,
    inputs: InputsOption = "digits",
    limit: LimitOption = 32,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    epsilon: EpsilonOption = None,
    samples: SamplesOption = None,
    rel_width: RelWidthOption = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated methods (default: all that apply)")
    ] = None,
    train: TrainOption = None,
    inits: Annotated[
        int, typer.Option(min=1, help="Score so many initialisations of an architecture.")
    ] = 1,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report.")
    ] = None,
) -> None:
    """Score a network: how far its output moves, how likely, and how sure that is."""
    from crashsim.report.text import render
    from crashsim.spread import spread_over

    for file in (json_file, report_file):
        _check_writable(file)
    faults = _faults(fault, p, sites, group)
    data = _data(inputs).first(limit)
    names = [m.strip() for m in methods.split(",")] if methods else None
    results = []
    for init in range(inits):
        named = _model(model, seed + init, train, weights, inits)
        with _progress() as progress:
            results.append(
                _score(
                    named.model, data, faults, epsilon, names, samples, rel_width, seed, progress,
                    named.name,
                )
            )  # fmt: skip
        if init == 0:
            _out().print(render(results[0]))
    if inits > 1:
        _out().print(spread_over(results))
    if json_file:
        plain = results[0].to_dict()
        if inits > 1:
            plain["inits"] = [result.to_dict() for result in results[1:]]
        _write(json_file, json.dumps(plain, indent=1))
    if report_file:
        _write(report_file, results[0].to_html())


@app.command()
def compare(
    models: ModelsArgument,
    inputs: InputsOption = "digits",
    limit: LimitOption = 32,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    samples: SamplesOption = None,
    train: TrainOption = None,
    inits: Annotated[int, typer.Option(min=1, help="Initialisations of each architecture.")] = 1,
    by: Annotated[
        Literal["variance", "class-change"] | None,
        typer.Option(help="What to rank by. (default: class-change for classifiers)"),
    ] = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Rank models by how well they tolerate faults, with intervals."""
    import torch

    from crashsim.comparison import compare as compare_scores
    from crashsim.report.comparison import render_comparison
    from crashsim.training import accuracy

    _check_writable(json_file)
    if len(set(models)) < len(models):
        raise ArgumentError(f"models: {models} names one twice; give different models")
    faults = _faults(fault, p, sites, group)
    data = _data(inputs)
    chosen = data.first(limit)
    scores, accuracies, spreads = {}, {}, {}
    for name in models:
        group_scores, group_accuracy, group_spread = [], [], []
        for init in range(inits):
            named = _model(name, seed + init, train, None, inits)
            with _progress() as progress:
                group_scores.append(
                    _score(
                        named.model, chosen, faults, None, ["monte-carlo"], samples, None, seed,
                        progress, name,
                    )
                )  # fmt: skip
            with torch.no_grad():
                clean = named.model(chosen.inputs.clone()).flatten(1)
            group_spread.append(float(clean.var(0, correction=0).sum()))
            if data.targets is not None:
                group_accuracy.append(accuracy(named.model, data))
        scores[name], spreads[name] = group_scores, group_spread
        if group_accuracy:
            accuracies[name] = group_accuracy
    result = compare_scores(scores, by, accuracies, spreads)
    _out().print(render_comparison(result))
    if json_file:
        from crashsim.scoring import finite

        _write(json_file, json.dumps(finite(result.to_dict()), indent=1))


@app.command()
def train(
    architecture: Annotated[str, typer.Argument(help="Such as 64-100-50-10:sigmoid.")],
    data: Annotated[str, typer.Option(help="digits, mnist:FOLDER or an .npz file.")] = "digits",
    out: Annotated[Path, typer.Option(help="Writes OUT.safetensors and OUT.json.")] = Path("model"),
    epochs: Annotated[int, typer.Option(help="Passes through the data.")] = 40,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 5e-3,
    batch: Annotated[int, typer.Option(help="Examples in a step.")] = 64,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    dropout: Annotated[float, typer.Option(help="Of hidden neurons while training.")] = 0.0,
    seed: SeedOption = 0,
) -> None:
    """Train an architecture and write a model file."""
    from dataclasses import asdict

    from crashsim.architectures import parse_architecture
    from crashsim.data import load_data
    from crashsim.files import save_model
    from crashsim.training import Recipe, accuracy, train_classifier

    built = parse_architecture(architecture)
    recipe = Recipe(epochs, learning_rate, batch, weight_decay, dropout, seed)
    training, test = load_data(data, "train"), load_data(data, "test")
    model = built.build(seed)
    with _progress() as progress:
        loss = train_classifier(
            model, training, recipe, lambda done, total: progress("training", done, total)
        )
    reached = accuracy(model, test)
    facts = {"data": data, "accuracy": reached, "loss": loss, "recipe": asdict(recipe)}
    weights, _ = save_model(out, model, built, facts)
    _out().print(
        f"{built}: test accuracy {reached:.2%} on {len(test.inputs)} examples, "
        f"training loss {loss:.3g}"
    )
    _out().print(f"wrote {weights}", style="dim", highlight=False)


@app.command()
def derive(
    order: Annotated[int, typer.Option(help="Of the Taylor expansion: 1, 2 or 3.")] = 1,
    fault: Annotated[str | None, typer.Option(help="A kind of fault; default: any law.")] = None,
    point: Annotated[
        Literal["mean", "zero"], typer.Option(help="Expand at the mean point or at no faults.")
    ] = "mean",
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
) -> None:
    """Derive the formulas for mean and variance symbolically, and print them."""
    from crashsim_theory import TheoryError
    from crashsim_theory import derive as derive_formulas

    from crashsim.faults import FAULTS

    if fault is not None and fault not in FAULTS:
        raise ArgumentError(f"fault={fault!r} is not known; choose among {', '.join(FAULTS)}")
    law = None if fault is None else FAULTS[fault].law
    try:
        formula = derive_formulas(order=order, point=point, law=law)
    except TheoryError as error:
        raise ArgumentError(str(error)) from error
    typer.echo(formula.latex() if latex else formula.text())


@app.command()
def report(
    score_file: Annotated[Path, typer.Argument(help="JSON from `crashsim score --json`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Turn a saved score into an HTML report."""
    from crashsim.scoring import Score

    _check_writable(out)
    _write(out, Score.load(score_file).to_html())


def main() -> None:
    """Entry point: exit code 0 if fine, 2 for wrong use, 1 for failure."""
    warnings.showwarning = _show_warning
    try:
        app()
    except CrashsimError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except BrokenPipeError:  # `| head` is no failure of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("CRASHSIM_TRACEBACK"):
            raise
        kind = type(error).__name__
        _fail(f"{kind}: {error}\n(set CRASHSIM_TRACEBACK=1 to see where)", 1)


def _fail(message: str, code: int) -> NoReturn:
    console = Console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(message, highlight=False, markup=False)
    raise SystemExit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    console = Console(stderr=True)
    console.print("warning:", style="yellow", end=" ")
    console.print(str(message), highlight=False, markup=False)


def _out() -> Console:
    return Console()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show


def _faults(
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


def _data(spec: str) -> Any:
    from crashsim.data import load_data

    return load_data(spec, "test")


def _model(spec: str, seed: int, train: str | None, weights: str | None, inits: int) -> Any:
    """The named model, trained if asked for."""
    from crashsim.data import load_data
    from crashsim.files import load_model
    from crashsim.training import Recipe, train_classifier

    named = load_model(spec, seed=seed, weights=weights)
    if inits > 1 and named.architecture is None:
        raise ArgumentError(f"inits={inits}: {spec!r} is one set of weights; use an architecture")
    if train is not None and not named.trained:
        with _progress() as progress:
            train_classifier(
                named.model,
                load_data(train, "train"),
                Recipe(seed=seed),
                lambda done, total: progress("training", done, total),
            )
    elif train is not None:
        raise ArgumentError(f"train={train!r}: {spec!r} has weights already; use an architecture")
    return named


def _score(
    model: Any,
    data: Any,
    faults: dict[str, Any],
    epsilon: float | None,
    methods: list[str] | None,
    samples: int | None,
    rel_width: float | None,
    seed: int,
    progress: Callable[[str, int, int], None],
    name: str,
) -> Any:
    from crashsim.scoring import score as compute

    with warnings.catch_warnings():
        # The score holds its warnings, and rendering shows them.
        warnings.simplefilter("ignore", CrashsimWarning)
        return compute(
            model,
            data.inputs,
            faults,
            epsilon=epsilon,
            methods=methods,
            samples=samples,
            rel_width=rel_width,
            seed=seed,
            progress=progress,
            names={"model": name, "inputs": data.name},
        )


def _check_writable(path: Path | None) -> None:
    """Fails before the work, not after it."""
    if path is not None and path.is_dir():
        raise FileError(f"output: {str(path)!r} is a folder; give a file name")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise FileError(f"output: cannot write {str(path)!r} ({error})") from error
    Console(stderr=True).print(f"wrote {path}", style="dim", highlight=False)
