"""How many masks and inputs of a chip are run: those asked for, as far as a budget goes."""

from __future__ import annotations

from dataclasses import dataclass

from crashsim_hardware import Chip, Conv2d, most_operations

__all__ = [
    "FEWEST_MASKS",
    "INPUTS",
    "MASKS",
    "MOST_OPERATIONS",
    "RunPlan",
    "computed_operations",
    "plan_run",
]

MASKS = 400
INPUTS = 32
MOST_OPERATIONS = 5e11
"""Synaptic operations of a run whose size nobody gave: some minutes on one core."""

FEWEST_MASKS = 100
"""Masks that are given up last: with them the interval of a variance is about 30% to either side"""
_FEWEST_INPUTS = 4
_CONVOLVED = 5.0  # floating-point operations that a synaptic one takes, where windows are gathered
_READS = 3  # of a mask: two with faults and, up to 256 masks, one without


@dataclass(frozen=True)
class RunPlan:
    """What is run of what was asked for.

    Attributes:
        masks, inputs: that are run.
        most_masks, most_inputs: that were asked for.
        operations: what one mask on one input costs, all of its reads together.
        budget: of operations.
    """

    masks: int
    inputs: int
    most_masks: int
    most_inputs: int
    operations: float
    budget: float

    @property
    def cost(self) -> float:
        """Operations of all that is run."""
        return self.operations * self.masks * self.inputs

    def words(self, chip: Chip) -> str:
        """What is run, and what it takes, in words."""
        return (
            f"{self.masks} fault patterns on {self.inputs} inputs, {chip.total_steps} steps of "
            f"{sum(chip.sizes):,} neurons: {self.cost:.2g} synaptic operations at most"
        )

    def note(self) -> str | None:
        """What was left out and how to have it; None where nothing was."""
        if (self.masks, self.inputs) == (self.most_masks, self.most_inputs):
            return None
        beyond = (
            f"; even so it is beyond the budget, {self.cost:.2g} operations"
            if self.cost > self.budget
            else ""
        )
        return (
            f"{self.masks} of {self.most_masks} fault patterns on the first {self.inputs} of "
            f"{self.most_inputs} inputs are run, to stay within {self.budget:.2g} synaptic "
            f"operations (all: {self.operations * self.most_masks * self.most_inputs:.2g})"
            f"{beyond}; give --masks and --limit for more"
        )


def plan_run(
    chip: Chip,
    inputs: int,
    masks: int | None,
    *,
    budget: float = MOST_OPERATIONS,
    keeps_inputs: bool = False,
) -> RunPlan:
    """The masks and inputs that fit in the budget.

    First masks are given up, down to ``FEWEST_MASKS``; then inputs, down to four; then masks, down
    to 30; then inputs. What is given by the user stays.

    Args:
        chip: that is run.
        inputs: number of inputs.
        masks: number of masks that was asked for; None: ``MASKS``, if affordable.
        budget: of synaptic operations.
        keeps_inputs: all inputs are run.
    """
    each = _READS * most_operations(chip) * chip.total_steps
    affordable = max(1, int(budget / each))
    most = MASKS if masks is None else masks
    fewest = 1 if not keeps_inputs else inputs
    run_masks, run_inputs = most, inputs
    for least_masks, least_inputs in ((FEWEST_MASKS, _FEWEST_INPUTS), (30, fewest)):
        if masks is None:
            least = min(run_masks, least_masks)
            run_masks = max(least, min(run_masks, affordable // run_inputs))
        least = max(fewest, min(run_inputs, least_inputs))
        run_inputs = max(least, min(run_inputs, affordable // run_masks))
    return RunPlan(run_masks, run_inputs, most, inputs, each, budget)


def computed_operations(chip: Chip, planned: RunPlan) -> float:
    """Floating-point operations of a run, about: those of matrices, or of gathered windows."""
    transforms = (t for projection in chip.projections for t in projection.transforms)
    convolved = any(isinstance(transform, Conv2d) for transform in transforms)
    return planned.cost * (_CONVOLVED if convolved else 1.0)
