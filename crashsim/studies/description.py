"""A study as a TOML file: models, data, and grids of faults, rates, sites, metrics and seeds."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from crashsim.arguments import MOST_SAMPLES, nearest, shown
from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.files.limits import opened
from crashsim.metrics.named import check_name
from crashsim.scoring.planning.costs import read_budget
from crashsim.sweeping.rates import read_rates

_MOST_BYTES = 2**24  # of a file
_ALL = "*"  # metrics
_REMEDY = "give a TOML file as docs/campaigns.md describes it"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | Mapping) else value


def _widths(value: Any) -> Any:
    """By metric; a number is that of all metrics."""
    return {_ALL: value} if isinstance(value, int | float) else value


def _rates(value: Any) -> Any:
    return None if value is None else list(_as_error(read_rates, value))


def _as_error(read: Any, value: Any) -> Any:
    """What a reader of arguments makes of a value; pydantic collects what it refuses."""
    try:
        return read(value)
    except CrashsimError as error:
        raise ValueError(str(error)) from error


def _each_once(values: list[Any]) -> list[Any]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice; give it once")
    return values


Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[
    list[Name], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_each_once)
]
Metrics = Annotated[
    Names, AfterValidator(lambda names: [_as_error(check_name, name) for name in names])
]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63)]],
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_each_once),
]
Widths = Annotated[
    dict[str, Annotated[float, Field(gt=0, lt=math.inf)]] | None, BeforeValidator(_widths)
]
Budget = Annotated[
    str | float, AfterValidator(lambda text: (_as_error(read_budget, text), text)[1])
]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudyTable(_Table):
    """``[study]``: what holds for all cases.

    Attributes:
        name: of the study.
        seed: of training, and of whatever else is drawn to make the models.
        confidence: of every interval.
        chips: of a case, the most.
        width: half-width that intervals are to have, in units of the metric: of all metrics, or by
            metric. Cases then get chips by turns, the widest first.
        rel_width: the same, relative to the value.
        budget: time for all (``"2h"``, at 1e10 operations a second), or operations.
    """

    name: Name = "study"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    chips: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1000
    width: Widths = None
    rel_width: Widths = None
    budget: Budget | None = None


class ModelTable(_Table):
    """``[[models]]``: a model as the command line takes it."""

    name: Name
    model: Name
    weights: str | None = None
    train: str | None = None
    reset: Literal["subtract", "zero", "late-subtract", "late-zero"] | None = None
    trust: bool = False
    readout: str | None = None
    steps_axis: Annotated[int, Field(ge=0)] | None = None


class DataTable(_Table):
    """``[[data]]``: examples and targets, as the command line takes them."""

    name: Name
    inputs: Name
    targets: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    batch_axis: Annotated[int, Field(ge=0)] = 0


class GridTable(_Table):
    """``[grid]``, or several ``[[grid]]``: each combination of its entries is a case.

    Attributes:
        fault: as ``--fault`` of the command line.
        rates: take the place of the faults' own; a list, or ``"1e-6:1e-2:9"``.
        sites: where faults strike that do not say so themselves.
        metric: by name.
        seeds: of the chips.
        models, data: names of some of the models and data; by default all.
    """

    fault: Names
    rates: Annotated[list[float] | None, BeforeValidator(_rates)] = None
    sites: Names | None = None
    metric: Metrics = ["accuracy"]
    seeds: Seeds = [0]
    models: Names | None = None
    data: Names | None = None


Grids = Annotated[list[GridTable], BeforeValidator(_listed), Field(min_length=1)]


class Study(_Table):
    """All of a study; see the attributes of its tables."""

    study: StudyTable = StudyTable()
    models: Annotated[list[ModelTable], Field(min_length=1)]
    data: Annotated[list[DataTable], Field(min_length=1)]
    grid: Grids

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for table, entries in (("models", self.models), ("data", self.data)):
            names = [entry.name for entry in entries]
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                raise ValueError(f"[[{table}]] name={twice[0]!r} is there twice; rename one")
            for grid in self.grid:
                for name in getattr(grid, table) or ():
                    if name not in names:
                        raise ValueError(
                            f"[grid] {table}: {name!r} is not among [[{table}]]"
                            f"{nearest(name, names)}; there are {', '.join(names)}"
                        )
        known = [metric for grid in self.grid for metric in grid.metric]
        for option in ("width", "rel_width"):
            widths = getattr(self.study, option)
            for name in widths or ():
                if name not in (_ALL, *known):
                    raise ValueError(
                        f"[study] {option}: {name!r} is no metric of the grid"
                        f"{nearest(name, known)}; there are {', '.join(dict.fromkeys(known))}"
                    )
        return self

    def asked_width(self, metric: str, value: float) -> float | None:
        """The half-width that the interval of a metric of this value is to have."""
        found: list[float] = []
        for given, scale in ((self.study.width, 1.0), (self.study.rel_width, abs(value))):
            one = given.get(metric, given.get(_ALL)) if isinstance(given, dict) else None
            if one is not None:
                found.append(one * scale)
        return max(found) if found else None

    @property
    def is_adaptive(self) -> bool:
        """Whether the chips of a case depend on what was found."""
        asked = (self.study.width, self.study.rel_width, self.study.budget)
        return any(each is not None for each in asked)


def read_study(path: str | Path) -> Study:
    """The study that a file describes.

    Raises:
        FileError: it cannot be read, or is no TOML.
        ArgumentError: an entry that makes no sense: names file, table, key, value and remedy.
    """
    subject = f"study={str(path)!r}"
    with opened(subject, path, _REMEDY) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise FileError(f"{subject}: is larger than {_MOST_BYTES >> 20} MiB; {_REMEDY}")
    try:
        plain = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise FileError(f"{subject}: is no TOML ({error}); {_REMEDY}") from error
    return study_of(plain, subject)


def study_of(plain: Mapping[str, Any], subject: str = "study") -> Study:
    """The study that a mapping describes, as the file would.

    Raises:
        ArgumentError: as ``read_study``.
    """
    try:
        return Study.model_validate(dict(plain))
    except ValidationError as error:
        raise ArgumentError(f"{subject}: {_told(error.errors()[0])}") from error


def with_budget(study: Study, budget: str) -> Study:
    """The same study with another budget. Raises ArgumentError where it is none."""
    read_budget(budget)
    table = study.study.model_copy(update={"budget": budget})
    return study.model_copy(update={"study": table})


_UNTOLD = (_ALL, "str", "float", "constrained-str", "function-after[<lambda>(), union[str,float]]")


def _told(error: ErrorDetails) -> str:
    """An error in words: which table and key, what is there, and what to do."""
    path = [part for part in error["loc"] if part not in _UNTOLD]
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return message
    where = _where(path)
    if error["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        return (
            f"{where}: there is no such key{nearest(str(path[-1]), known)}; "
            f"choose among {', '.join(known)}"
        )
    if error["type"] == "missing":
        return f"{where}: is missing; give it"
    return f"{where}={shown(error['input'])}: {message[0].lower()}{message[1:]}"


def _where(path: Sequence[int | str]) -> str:
    """``[[models]] (the second) weights``, of ``("models", 1, "weights")``."""
    table, *rest = path
    if table not in Study.model_fields:
        return str(table)
    words = f"[{table}]" if table in ("study", "grid") else f"[[{table}]]"
    if rest and isinstance(rest[0], int):
        number = rest.pop(0)
        if table != "grid" or number:
            words += f" (number {int(number) + 1})"
    keys = [f"[{part}]" if isinstance(part, int) else f" {part}" for part in rest]
    return words + "".join(keys)


_TABLES: dict[str, type[_Table]] = {
    "study": StudyTable,
    "models": ModelTable,
    "data": DataTable,
    "grid": GridTable,
}


def _keys(path: Sequence[int | str]) -> list[str]:
    return list((_TABLES[str(path[0])] if path else Study).model_fields)
