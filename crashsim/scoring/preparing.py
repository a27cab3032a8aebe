"""What is done before any method runs: arguments checked, the space made, methods chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

from crashsim.analytic.gains import MEMORY
from crashsim.analytic.questions import check_delta
from crashsim.arguments import check_seed, instance, named_outputs, whole
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError
from crashsim.faults import NeuronCrash
from crashsim.metrics import AskedMetrics
from crashsim.model.inputs import BatchAxis, ModelInputs
from crashsim.model.loss import asks_for_loss
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.noticing import notice
from crashsim.sampling.monte_carlo import check_sampling
from crashsim.scoring.judging import Judging, judging_of, read_given, read_widths
from crashsim.scoring.method import Method
from crashsim.scoring.planning.costs import cost_of_chips, read_budget
from crashsim.scoring.planning.plan import Plan, plan
from crashsim.scoring.planning.size import Size
from crashsim.scoring.request import CONFIDENCE, Progress, Request
from crashsim.scoring.timing import timing
from crashsim.scoring.variance_reduction import chosen_chips
from crashsim.space import FaultSpace
from crashsim.working import telling

if TYPE_CHECKING:
    from crashsim_hardware import Chip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``score`` takes beside the model, its inputs and faults, as it was given.

    Its fields are arguments of ``crashsim.score``, which says what they mean.
    """

    sites: str = "hidden"
    epsilon: float | None = None
    methods: Iterable[str | Method] | None = None
    samples: int | None = None
    rel_width: float | Mapping[str, float] | None = None
    seed: int = 0
    readout: str | int | None = None
    delta: float | None = None
    outputs: Iterable[int] | Literal["loss"] | None = None
    loss: str | Callable[[Tensor, Tensor], Tensor] | None = None
    hardware: bool = False
    proofs: bool = False
    confidence: float = CONFIDENCE
    chip: Chip | None = None
    targets: Any = None
    metrics: Iterable[Any] | None = None
    accept: Mapping[str, float] | None = None
    moved: int | None = None
    virtual: int | None = None
    reset: Reset | None = None
    batch_axis: BatchAxis = 0
    steps_axis: StepsAxis | None = None
    memory: int = MEMORY
    budget: float | str | None = None


SPACE, PLAN = "model and sites", "plan"  # what takes a while, as progress and timings name it


class Prepared(NamedTuple):
    """A score before it is computed, and the seconds that this took."""

    space: FaultSpace
    plan: Plan
    asked: Request
    timings: dict[str, float]


def prepared(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None,
    options: Options,
    progress: Progress = lambda *_: None,
) -> Prepared:
    """Checks the arguments, makes the space and chooses methods.

    Args:
        model, inputs, faults, options: of the score.
        progress: is told that the space is made, and the plan, while it is.

    Raises:
        CrashsimError: an argument makes no sense, or the model cannot be analysed.
    """
    epsilon, delta, widths = options.epsilon, options.delta, read_widths(options.rel_width)
    rel_width = widths.get("variance")
    check_sampling(options.samples, rel_width, epsilon, options.confidence)
    check_delta(delta)
    for name, flag in (("hardware", options.hardware), ("proofs", options.proofs)):
        instance(name, flag, bool, "True or False")
    if options.chip is not None:
        from crashsim_hardware import Chip

        instance("chip", options.chip, Chip, "the chip that read_chip returned")
    if delta is not None and epsilon is None:
        raise ArgumentError(f"delta={delta!r}: give epsilon too; together they are the target")
    seed, budget = check_seed(options.seed), read_budget(options.budget)
    memory = whole("memory", options.memory, 2**20, 2**50)
    # Fractions and numpy's numbers are taken for what they are.
    samples = None if options.samples is None else int(options.samples)
    epsilon, delta, rel_width = (
        None if value is None else float(value) for value in (epsilon, delta, rel_width)
    )
    timings: dict[str, float] = {}
    with telling(SPACE, progress), timing(timings, SPACE):
        given = read_given(
            model, inputs, options.targets, options.batch_axis, options.moved,
            outputs=options.outputs, loss=options.loss,
        )  # fmt: skip
        space = FaultSpace(
            model,
            given.inputs,
            NeuronCrash(p=0.01) if faults is None else faults,
            options.sites,
            readout=options.readout,
            reset=options.reset,
            batch_axis=options.batch_axis,
            steps_axis=options.steps_axis,
            outputs="loss" if asks_for_loss(options.outputs) else None,
            loss=options.loss,
        )
        if options.chip is not None:
            _tell_saturation(options.chip, space)
        outputs = None if space.loss else named_outputs(options.outputs, space.K)
        judging = judging_of(
            space,
            given,
            options.metrics,
            widths,
            options.accept,
            chips=samples,
            virtual=options.virtual,
        )
    with telling(PLAN, progress), timing(timings, PLAN):
        hardware, proofs = options.hardware, options.proofs
        planned = plan(
            space, options.methods, samples, rel_width, hardware, proofs, memory, budget,
            lambda size: 0.0 if judging is None else _of_chips(size, judging),
            outputs or (),
        )  # fmt: skip
    asked = Request(
        epsilon=epsilon,
        delta=delta,
        samples=planned.samples,
        rel_width=rel_width,
        seed=seed,
        confidence=float(options.confidence),
        memory=memory,
        chip=options.chip,
        outputs=outputs,
        metrics=AskedMetrics() if judging is None else judging.of_inputs,
        judging=judging,
    )
    return Prepared(space, planned, asked, timings)


def _of_chips(size: Size, judging: Judging) -> float:
    """Operations that chips on all examples take."""
    return cost_of_chips(size, judging, chosen_chips(size, judging)).operations


def _tell_saturation(chip: Chip, space: FaultSpace) -> None:
    from crashsim.chip.spiking import saturated_layers

    for message in saturated_layers(chip, space.inputs.double().cpu().numpy()):
        notice(message)
