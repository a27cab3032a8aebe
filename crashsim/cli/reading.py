"""From options to models, data and faults, and from results to files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from crashsim.cli.terminal import console, printing, standard_error, tell
from crashsim.errors import ArgumentError
from crashsim.importing import check_there
from crashsim.noticing import collecting, notice, speaking
from crashsim.visible import visible
from crashsim.writing import Named, all_of, check_files, write_files, write_text

if TYPE_CHECKING:
    from crashsim.results.tables import Table

STDOUT = Path("-")  # in the place of a file's name
_SMALL = 2_000_000  # parameters
_T = TypeVar("_T")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr; where that is no terminal nothing, or a line for each step."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = standard_error()
    if printing().verbose and not terminal.is_terminal:
        yield _tell_steps()
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
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


def _tell_steps() -> Callable[[str, int, int], None]:
    """Tells each step when it starts, and what it took when it is done."""
    started: dict[str, float] = {}

    def say(name: str, done: int, total: int) -> None:
        if name not in started:
            started[name] = time.monotonic()
            tell(f"{name}: of {total:,}", "dim")
        if done >= total > 0 and started[name] >= 0:
            tell(f"{name}: done, {time.monotonic() - started[name]:.1f} s", "dim")
            started[name] = -1.0

    return say


def read_faults(
    specs: list[str] | None, p: float | None, sites: str | None, group: str | None
) -> dict[str, Any]:
    """Faults by site from the options.

    Raises:
        ArgumentError: a fault that makes no sense, or an option that no fault takes.
    """
    from crashsim.cli.fault_specs import parse_fault
    from crashsim.faults import WordFault, counted

    found: dict[str, Any] = {}
    unused = {"p": p, "sites": sites, "group": group}
    for spec in specs or ["neuron-crash"]:
        where, fault = parse_fault(spec, default_p=0.01 if p is None else p, group=group)
        if where is None:
            unused.pop("sites", None)
            where = sites
        for option in ("p", "group"):
            takes = hasattr(fault, option) and not (option == "p" and counted(fault))
            if takes and f"{option}=" not in spec.rpartition(":")[2]:
                unused.pop(option, None)
        if where is None:
            of_weights = fault.strikes == "weights" or isinstance(fault, WordFault)
            where = "weights" if of_weights else "hidden"
        if where in found:
            raise ArgumentError(f"fault={spec!r}: {where!r} has a fault already; name other sites")
        found[where] = fault
    for option, value in unused.items():
        if value is not None:
            raise ArgumentError(f"{option}={value!r}: no --fault takes it; leave --{option} out")
    return found


def read_indices(option: str, text: str | None) -> list[int] | None:
    """Whole numbers with commas between them."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"{option}={text!r}; give whole numbers, such as 3,7") from None


def read_asked_outputs(text: str | None) -> list[int] | str | None:
    """Numbers of outputs, or ``loss``."""
    return text if text == "loss" else read_indices("outputs", text)


def read_loss(text: str | None) -> Any:
    """A loss by name, or a function of the user's own code (``path.py:NAME``)."""
    if text is None or not text.rpartition(":")[0].endswith(".py"):
        return text
    from crashsim.files.users_code import load_value

    file, _, name = text.rpartition(":")
    return load_value(Path(file), name, FunctionType, f"loss={text!r}")


def loss_inputs(text: str | None) -> list[Named]:
    """The file of code that a loss is read from."""
    file = (text or "").rpartition(":")[0]
    return [("loss", file)] if file.endswith(".py") else []


def read_methods(text: str | None) -> list[Any] | None:
    """The methods of an option: names, and those of the user's own code."""
    if text is None:
        return None
    return [_read_method(spec) for spec in map(str.strip, text.split(","))]


def _read_method(spec: str) -> Any:
    file, name = _method_file(spec)
    if file is None:
        return spec
    from crashsim.files.users_code import load_value
    from crashsim.scoring.method import Method

    return load_value(Path(file), name, Method, f"methods={spec!r}")


def _method_file(spec: str) -> tuple[str | None, str]:
    """The file of ``path.py:NAME`` or ``+path.py:NAME``, and the name; no file of a plain name."""
    file, _, name = spec.removeprefix("+").rpartition(":")
    return (file, name) if file.endswith(".py") else (None, spec)


def method_inputs(text: str | None) -> list[Named]:
    """The files of code that methods are read from."""
    files = (_method_file(spec.strip())[0] for spec in (text or "").split(","))
    return [("methods", file) for file in files if file is not None]


def read_examples(spec: str, limit: int | None = None, batch_axis: int = 0) -> Any:
    """The first examples of a file or data set, along the axis of its arrays that is the batch."""
    from dataclasses import replace

    from crashsim.files.data import load_examples

    if not batch_axis:
        return load_examples(spec, limit)
    examples = load_examples(spec)

    def first(tensor: Any) -> Any:
        axis = batch_axis if tensor.dim() > batch_axis else 0
        return tensor.narrow(axis, 0, min(limit or tensor.shape[axis], tensor.shape[axis]))

    given = examples.inputs
    if isinstance(given, dict):
        return replace(examples, inputs={name: first(tensor) for name, tensor in given.items()})
    return replace(examples, inputs=first(given))


def read_data(spec: str, limit: int) -> Any:
    from crashsim.files.data import load_data

    return load_data(spec, "test", limit)


def read_model(
    spec: str,
    seed: int,
    train: str | None = None,
    weights: str | None = None,
    inits: int = 1,
    reset: Literal["subtract", "zero", "late-subtract", "late-zero"] | None = None,
    trust: bool = False,
    graph: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The named model, trained if asked for; `graph` says how a NIR graph is run."""
    import torch

    from crashsim.files.data import load_data
    from crashsim.files.models import load_model
    from crashsim.training.classifier import Recipe, train_classifier

    asked = {name: value for name, value in graph.items() if value is not None}
    named = load_model(spec, seed=seed, weights=weights, reset=reset, trusted=trust, graph=asked)
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
    from torch.nn.parameter import is_lazy

    return sum(p.numel() for p in model.parameters() if not is_lazy(p))


def score_model(
    named: Any,
    data: Any,
    faults: dict[str, Any],
    progress: Callable[[str, int, int], None],
    **options: Any,
) -> Any:
    """The score of a model; its warnings stay in it, for whoever shows it."""
    from crashsim.scoring.score import score

    with collecting(), speaking(lambda message: tell(message, label="note:")):
        return score(
            named.model,
            data.fitted(named.model),
            faults,
            progress=progress,
            names={"model": named.name, "inputs": data.name},
            chip=named.chip,
            **options,
        )


def judge_model(
    named: Any,
    data: Any,
    faults: dict[str, Any],
    progress: Callable[[str, int, int], None],
    *,
    is_asked: bool,
    **options: Any,
) -> Any:
    """The score of a model with the targets of its data.

    Args:
        is_asked: whether the targets were asked for. Targets that the data bring along, and that do
            not go with the model's outputs, are left out, which is told.
    """
    return _judged(partial(score_model, named, progress=progress), data, faults, is_asked, options)


def _judged(
    call: Callable[..., _T],
    data: Any,
    faults: dict[str, Any],
    is_asked: bool,
    options: dict[str, Any],
) -> _T:
    is_asked = is_asked or any(options.get(name) for name in ("metrics", "accept", "virtual"))
    is_asked = is_asked or isinstance(options["rel_width"], dict) or options["outputs"] == "loss"
    try:
        return call(data, faults, targets=data.targets, **options)
    except ArgumentError as error:
        if is_asked or data.targets is None or not str(error).startswith("metrics:"):
            raise
        reason = str(error).removeprefix("metrics:").strip()
    notice(f"the targets of the data are left out, and no accuracy is told: {reason}")
    return call(data.first(options["moved"]), faults, **options)


def show_plan(
    named: Any,
    data: Any,
    faults: dict[str, Any],
    json_file: Path | None,
    options: dict[str, Any],
    *,
    is_asked: bool,
) -> None:
    """Prints what a score of the model would run, and writes it where asked."""
    from crashsim.scoring.planning.preview import Preview, plan

    def planned(data: Any, faults: dict[str, Any], **chosen: Any) -> Preview:
        return plan(named.model, data.fitted(named.model), faults, chip=named.chip, **chosen)

    found = _judged(planned, data, faults, is_asked, options)

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(found.to_dict(), indent=1))

    def as_text() -> None:
        shown = visible(found.to_text(), lines=True)
        console().print(shown, end="", markup=False, highlight=False, soft_wrap=True)

    all_of(as_json, as_text)


def check_outputs(
    inputs: Iterable[Named] = (),
    *,
    out: Path | None = None,
    **files: Path | None,
) -> None:
    """Fails before the work where a result could not be written, or would overwrite something.

    Args:
        inputs: the files that the command reads, as ``model_inputs`` and ``data_inputs`` say.
        out: where a model is to be written: two files.
        files: where other results are to be written, by option.

    Raises:
        FileError, ArgumentError: that cannot be.
        MissingExtraError: Parquet is asked for, and pyarrow is not there.
    """
    there = ((name, path) for name, path in files.items() if path is not None)
    outputs: list[Named] = [(name, path) for name, path in there if path != STDOUT]
    if files.get("parquet") is not None:
        from crashsim.results.tables import check_parquet

        check_parquet()
    if out is not None:
        from crashsim.files.models import check_model_path, model_files

        check_model_path(out)
        outputs += [("out", path) for path in model_files(out)]
    check_files(outputs, inputs)


def check_figures(report: Path | None) -> None:
    """Fails before the work where a page with figures is asked for without matplotlib."""
    if report is not None:
        check_there("matplotlib", "report: a page with figures")


def model_inputs(spec: str, weights: str | None = None) -> list[Named]:
    """The files that a model may be read from."""
    from crashsim.files.architectures import is_architecture
    from crashsim.files.checkpoints import PREFIX, checkpoint_files
    from crashsim.files.models import model_files
    from crashsim.files.onnx_graphs.spec import onnx_spec

    given: list[Named] = [] if weights is None else [("weights", weights)]
    if onnx := onnx_spec(spec):
        from crashsim.files.onnx_graphs.reading import files_beside

        files: list[str | Path] = [onnx.path, *files_beside(onnx.path)]
        return [*(("model", file) for file in files), *given]
    if spec.startswith(PREFIX):
        folder = Path(spec.removeprefix(PREFIX))
        return [*(("model", file) for file in checkpoint_files(folder)), *given]
    if not Path(spec).name or is_architecture(spec):
        return given
    code = spec.rpartition(":")[0]  # of a factory: a file, or a module in this folder
    module = code.replace(".", os.sep)
    found = (code, f"{module}.py", f"{module}/__init__.py") if code else (spec, *model_files(spec))
    return [*(("model", file) for file in found), *given]


def fault_inputs(specs: list[str] | None) -> list[Named]:
    """The files of code that faults are read from."""
    from crashsim.cli.fault_specs import fault_files

    return [*fault_files(specs)]


def data_inputs(option: str, spec: str | None) -> list[Named]:
    """The files that data may be read from."""
    name, _, folder = (spec or "").partition(":")
    if name.startswith("mnist") and Path(folder).is_dir():
        return [(option, file) for file in sorted(Path(folder).iterdir())]
    if spec is None or Path(spec).suffix not in (".npy", ".npz"):
        return []
    return [(option, spec)]


def write(option: str, path: Path, text: str) -> None:
    """Writes a file; ``-`` is standard output, where then nothing else is printed."""
    if path == STDOUT:
        print(text.removesuffix("\n"))
        return
    write_text(option, path, text)
    told_written(path)


def write_tables(
    csv_file: Path | None, parquet_file: Path | None, table: Callable[[], Table]
) -> None:
    """Writes the files of rows that are asked for."""
    if csv_file is not None:
        write("csv", csv_file, table().csv())
    if parquet_file is not None:
        write_files("parquet", (parquet_file, table().parquet()))
        told_written(parquet_file)


def told_written(path: Path) -> None:
    tell(f"wrote {path}", "dim")
