"""What a score would compute, what that costs, and why not the rest: without computing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError
from crashsim.model.inputs import ModelInputs
from crashsim.noticing import collecting, notice
from crashsim.results.numbers import CORE, RATE_NAME, words_of_time
from crashsim.scoring.method import Method
from crashsim.scoring.planning.costs import Cost, cost_of_chips, words_of_memory
from crashsim.scoring.planning.plan import SAMPLING, Plan
from crashsim.scoring.preparing import Options, prepared
from crashsim.scoring.request import Request
from crashsim.scoring.variance_reduction import chosen_chips

CHIPS = "chips"  # on all examples
_LONG = 600.0  # seconds above which a score says beforehand what it takes


@dataclass(frozen=True)
class Preview:
    """What a score would do.

    Attributes:
        steps: what would be computed, in order, with its cost: methods, and what they share.
        methods: the names of the methods among these.
        chips: how many are judged on all examples, at most; None where none are, or where a width
            decides.
        samples: of Monte Carlo; None where the width asked for decides, or it does not run.
        skipped: methods that would not run, with the reason.
        coordinates, inputs, outputs: the numbers of fault coordinates, inputs and outputs.
        forward: operations of one pass of all inputs.
        sampling: how samples would be computed at each site.
        loss: which loss is read in place of the outputs, if one is.
    """

    steps: dict[str, Cost]
    methods: tuple[str, ...]
    samples: int | None
    chips: int | None
    skipped: dict[str, str]
    coordinates: int
    inputs: int
    outputs: int
    forward: float
    sampling: list[str]
    loss: str | None = None

    @property
    def operations(self) -> float:
        """Of all steps."""
        return sum(cost.operations for cost in self.steps.values())

    @property
    def seconds(self) -> float:
        """Of a core that does 1e10 operations a second; no clock was read for it."""
        return self.operations / CORE

    @property
    def memory(self) -> float:
        """Bytes of the step that needs most, beside the model and its inputs."""
        return max((cost.memory for cost in self.steps.values()), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; what ``--plan --json`` writes."""
        steps = [
            {
                "name": name,
                "method": name in self.methods,
                "operations": cost.operations,
                "seconds": cost.seconds,
                "memory": cost.memory,
            }
            for name, cost in self.steps.items()
        ]
        return {
            "rate": {"name": RATE_NAME, "operations_per_second": CORE},
            "operations": self.operations,
            "seconds": self.seconds,
            "memory": self.memory,
            "samples": self.samples,
            "chips": self.chips,
            "steps": steps,
            "skipped": self.skipped,
            "coordinates": self.coordinates,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "forward": self.forward,
            "sampling": self.sampling,
            "loss": self.loss,
        }

    def to_text(self) -> str:
        """A table for a terminal."""
        read = f"{self.outputs:,} outputs" if self.loss is None else f"their loss ({self.loss})"
        lines = [
            f"{self.coordinates:,} fault coordinates, {self.inputs:,} inputs, {read}; one pass of "
            f"all inputs takes {self.forward:.2g} operations",
            "",
            f"{'would run':24}{'operations':>12}{'time':>12}{'memory':>12}",
        ]
        for name, cost in self.steps.items():
            count = {SAMPLING: self.samples, CHIPS: self.chips}.get(name)
            about = f"{name} ({count:,})" if count else name
            lines.append(_row(about, cost.operations, cost.seconds, cost.memory))
        lines += [
            _row("all", self.operations, self.seconds, self.memory),
            f"Time is counted, not measured: that of a core at {RATE_NAME}.",
        ]
        if self.skipped:
            lines += ["", "would not run"]
            lines += [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        lines += ["", "samples are computed like this", *(f"  {line}" for line in self.sampling)]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return self.to_text()


def _row(name: str, operations: float, seconds: float, memory: float) -> str:
    time, space = words_of_time(seconds), words_of_memory(memory) if memory else "-"
    return f"{name:24}{operations:12.2g}{time:>12}{space:>12}"


def plan(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None = None,
    sites: str = "hidden",
    epsilon: float | None = None,
    methods: Iterable[str | Method] | None = None,
    samples: int | None = None,
    rel_width: float | Mapping[str, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Preview:
    """What ``score`` would compute and what that costs, without computing it.

    The model is run a few times, as for any score, to see what it is.

    Args:
        model, inputs, faults, sites, epsilon, methods, samples, rel_width, seed: as of ``score``.
        options: other arguments of ``score`` (``budget``, ``outputs``, ...); those that do not
            decide what is computed (``progress``, ``names``, ``executor``, ``store``) are taken and
            not used.

    Raises:
        CrashsimError: as ``score`` raises it.

    Example:
        >>> import torch, crashsim
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> crashsim.plan(net.eval(), torch.ones(1, 4), crashsim.NeuronCrash(p=0.1)).samples
        10000
    """
    options = {name: value for name, value in options.items() if name not in _UNUSED}
    options |= {
        "sites": sites, "epsilon": epsilon, "methods": methods, "samples": samples,
        "rel_width": rel_width, "seed": seed,
    }  # fmt: skip
    known = {field.name for field in fields(Options)}
    if unknown := sorted(options.keys() - known):
        raise ArgumentError(f"{unknown[0]}: score has no such argument; choose among its own")
    with collecting() as noticed:
        space, planned, asked, _ = prepared(model, inputs, faults, Options(**options))
        steps, chips = steps_of(planned, asked)
        found = Preview(
            steps=steps,
            methods=planned.methods,
            samples=asked.samples if SAMPLING in planned.methods else None,
            chips=chips,
            skipped=dict(planned.skipped),
            coordinates=space.N,
            inputs=space.B,
            outputs=space.K,
            loss=space.loss,
            forward=planned.size.operations,
            sampling=space.plan(),
        )
    for message in noticed:
        notice(message)
    return found


def steps_of(planned: Plan, asked: Request) -> tuple[dict[str, Cost], int | None]:
    """What a score computes, in order, with its cost; and how many chips it judges."""
    steps, chips = dict(planned.steps), None
    if asked.judging is not None and SAMPLING in planned.methods:
        chips = chosen_chips(planned.size, asked.judging)
        steps[CHIPS] = cost_of_chips(planned.size, asked.judging, chips)
    return steps, chips


def told_if_long(planned: Plan, asked: Request) -> str | None:
    """What is to be said before a score that takes more than ten minutes; None of others."""
    steps, _ = steps_of(planned, asked)
    seconds = sum(cost.seconds for cost in steps.values())
    if seconds <= _LONG:
        return None
    name, most = max(steps.items(), key=lambda step: step[1].seconds)
    return (
        f"this score takes about {words_of_time(seconds)} at {RATE_NAME}, of which "
        f"{words_of_time(most.seconds)} are {name}; crashsim.plan (--plan) shows all of it, and "
        "budget='2m' (--budget 2m) makes it fit"
    )


_UNUSED = ("progress", "names", "executor", "store")
