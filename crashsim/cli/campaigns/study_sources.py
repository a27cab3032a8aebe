"""A study's models, examples and faults, as the command line takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crashsim.cli.metrics import labelled_examples
from crashsim.cli.reading import (
    data_inputs,
    fault_inputs,
    model_inputs,
    read_faults,
    read_model,
)
from crashsim.writing import Named


class CommandLineSources:
    """What is named in a study as it is on a command line, from the folder of today.

    Args:
        is_plan: models are only to be counted, so none is trained.
    """

    def __init__(self, *, is_plan: bool = False) -> None:
        self._is_plan = is_plan

    def model(self, table: Any, study: Any) -> Any:
        """The module, trained if that is asked for."""
        named = read_model(
            table.model,
            study.study.seed,
            None if self._is_plan else table.train,
            table.weights,
            1,
            table.reset,
            table.trust,
        )
        return named.model

    def examples(self, table: Any, model: Any) -> tuple[Any, Any]:
        """Inputs as the model takes them, and targets or None."""
        data = labelled_examples(table.inputs, table.limit, table.batch_axis, table.targets)
        return data.fitted(model), data.targets

    def faults(self, fault: str, sites: str | None) -> Any:
        """Faults by site."""
        return read_faults([fault], None, sites, None)


def study_inputs(study: Any) -> Iterator[Named]:
    """The files that a study reads."""
    for table in study.models:
        yield from model_inputs(table.model, table.weights)
        yield from data_inputs("train", table.train)
    for table in study.data:
        yield from data_inputs("inputs", table.inputs)
        yield from data_inputs("targets", table.targets)
    yield from fault_inputs([fault for grid in study.grid for fault in grid.fault])
