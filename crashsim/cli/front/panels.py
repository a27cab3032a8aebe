"""Help on one screen: the options that most people use and examples; the others by group.

``--help-all`` says what every option does.
"""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

import typer
from rich.text import Text
from typer.core import TyperCommand

from crashsim.cli.front.completion import COMPLETIONS
from crashsim.cli.terminal import console

_ALWAYS = ("help", "help_all")
_OTHER = "Other options"
# The groups of options, by the names of parameters; in the order in which help shows them.
PANELS: Mapping[str, tuple[str, ...]] = {
    "Faults": (
        "fault", "p", "sites", "group", "rates", "joint", "fault_list", "index", "single_fault",
        "device", "set_values", "chip_fault",
    ),
    "Model and data": (
        "inputs", "targets", "limit", "train", "data", "inits", "weights", "trust", "readout",
        "batch_axis", "steps_axis", "calibrate", "event_step",
    ),
    "What is asked": (
        "metric", "accept", "epsilon", "delta", "outputs", "loss", "target", "accuracy",
        "class_change", "share", "budget", "schemes", "way", "by", "critical", "top",
    ),
    "How it is computed": (
        "methods", "samples", "chips", "rel_width", "virtual", "predict", "beside", "evaluations",
        "simultaneous", "confidence", "proofs", "hardware", "masks", "engine", "energy", "memory",
        "plan", "seed", "equal", "method", "adaptive", "order",
        "point", "latex",
    ),
    "Training": (
        "epochs", "learning_rate", "batch", "weight_decay", "dropout", "variance", "continuity",
        "balance", "crash_training", "max_width", "max_replicas", "max_accuracy_loss",
    ),
    "Graphs of neurons (.nir)": ("reset", "steps", "dt", "exporter", "start"),
    "Files that are written": (
        "json_file", "report_file", "arrays_file", "csv_file", "parquet_file",
        "faults_file", "nir_file", "out",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """The help of a command.

    Attributes:
        first: the options that most people use, in order, each with what it takes and a short text.
        examples: command lines.
    """

    first: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


def with_panels(run: Callable[..., None], page: Page) -> Callable[..., None]:
    """The command, its options in groups: first those of the page, then the others."""
    signature = inspect.signature(run)
    parameters = [_in_panel(parameter, page) for parameter in signature.parameters.values()]
    order = {name: i for i, name in enumerate(page.first)}
    parameters.sort(key=lambda p: order.get(p.name, len(order)))
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _in_panel(parameter: inspect.Parameter, page: Page) -> inspect.Parameter:
    kind, *others = get_args(parameter.annotation)
    found = []
    for info in others:
        info = copy.copy(info)
        if hasattr(info, "autocompletion") and parameter.name in COMPLETIONS:
            info.autocompletion = COMPLETIONS[parameter.name]
        if isinstance(info, typer.models.OptionInfo) and info.rich_help_panel is None:
            is_first = parameter.name in (*page.first, *_ALWAYS)
            info.rich_help_panel = None if is_first else _panel(parameter.name)
        found.append(info)
    return parameter.replace(annotation=Annotated[(kind, *found)])


def _panel(name: str) -> str:
    return next((panel for panel, names in PANELS.items() if name in names), _OTHER)


def paged(page: Page) -> type[TyperCommand]:
    """The class of a command whose help is one screen."""

    class Paged(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            is_full = ctx.meta.get(_FULL, False)
            shown = self if is_full else copy.copy(self)
            if not is_full:
                shown.params = [_shortened(p, page) for p in self.params if _stays(p, page)]
            TyperCommand.format_help(shown, ctx, formatter)
            left = [] if is_full else [p for p in self.params if not _stays(p, page)]
            for line, style in _below(page, left):
                console().print(Text(line, style), soft_wrap=True)

    return Paged


_FULL = "crashsim.help_all"


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_FULL] = True
        ctx.get_help()  # which prints, where text is rich
        raise typer.Exit


HELP_ALL: dict[str, Any] = {
    "help_all": Annotated[
        bool,
        typer.Option("--help-all", help="Help of all options.", is_eager=True, callback=_show_all),
    ]
}


def _stays(param: Any, page: Page) -> bool:
    """Whether a parameter is on the one screen."""
    is_option = param.param_type_name == "option"
    return not is_option or param.name in (*page.first, *_ALWAYS) or not _has_group(param)


def _has_group(param: Any) -> bool:
    return getattr(param, "rich_help_panel", None) is not None


def _shortened(param: Any, page: Page) -> Any:
    if param.name not in page.first:
        return param
    short = copy.copy(param)
    short.metavar, short.help = page.first[param.name]
    short.show_default = False
    return short


def _below(page: Page, others: list[Any]) -> Iterator[tuple[str, str]]:
    """Lines and their styles: the names of options that are not told of, and examples."""
    groups: dict[str, list[str]] = {panel: [] for panel in PANELS}
    for param in others:
        groups.setdefault(param.rich_help_panel, []).append(max(param.opts, key=len))
    groups = {group: names for group, names in groups.items() if names}
    if groups:
        yield " More options; --help-all says what they do", "bold"
    for group, names in groups.items():
        line = f"{group}: {' '.join(names)}"
        for part in textwrap.wrap(line, 78, initial_indent="   ", subsequent_indent="     ",
                                  break_on_hyphens=False):  # fmt: skip
            yield part, ""
    if page.examples:
        yield " Examples", "bold"
    for example in page.examples:
        yield f"   {example}", "cyan"
