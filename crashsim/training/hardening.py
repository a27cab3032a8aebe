"""Hardening (Algorithm 1): change a network until it fails with at most a given probability.

Asked for (epsilon, delta): P(some output moves by epsilon or more) <= delta. Two ways:

- ``saddlepoint``: tails of the linear surrogate at the mean point (Lugannani-Rice), and the exact
  binomial law of the median of replicas;
- ``paper``: the main theorem of arXiv 1902.01686 (Chebyshev, balance, smoothness) and its rule for
  the number of replicas once one network fails with probability below 1/3.

Either way the result is verified by Monte Carlo on inputs that no decision saw, with a fresh seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import nn

from crashsim.analytic.first_order import double_precision
from crashsim.arguments import MOST_COPIES, MOST_STEPS, number, one_of, sample_count, whole
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError, Interrupted
from crashsim.faults import check_drawable, check_independent, faults_of, lacking_for_tails
from crashsim.files.architectures import Architecture, parse_architecture
from crashsim.files.data import Data
from crashsim.space import FaultSpace
from crashsim.training.classifier import Recipe, accuracy, check_targets, train_classifier
from crashsim.training.judging import Judgement, judge, judge_as_paper
from crashsim.training.penalties import Strengths, attached_penalties
from crashsim.training.verification import Verification, verify

Method = Literal["saddlepoint", "paper"]
DESIGN_INPUTS, VERIFY_INPUTS = 32, 64
_BALANCED, _CROWDED = 0.1, 0.1  # least q, largest delta_0 of the paper's way
_FIRST_STRENGTH, _GROWTH = 1e-2, 10.0
_MAX_STRENGTH = 1e3


@dataclass(frozen=True)
class Design:
    """What may be changed about a network.

    Attributes:
        architecture: sizes and activation.
        variance, continuity, balance: strengths of the regularisers.
    """

    architecture: Architecture
    variance: float = 0.0
    continuity: float = 0.0
    balance: float = 0.0

    @property
    def strengths(self) -> Strengths:
        return Strengths(self.variance, self.continuity, self.balance)


@dataclass(frozen=True)
class Step:
    """One round: a network was trained and judged.

    Attributes:
        number: from 1.
        design: what was trained.
        accuracy: clean, on held-out examples.
        failure: estimated probability that one network fails (a bound, in the paper's way).
        replicas: copies needed, None if no number up to the limit suffices.
        reason: why the next change is made, or why none is.
        facts: q, delta_0 and the like.
    """

    number: int
    design: Design
    accuracy: float
    failure: float
    replicas: int | None
    reason: str
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hardened:
    """The result of hardening: the network, the rounds, and whether the target is met.

    Attributes:
        reached: the verification met the target.
        statement: the result in plain words; what cannot be reached, and why.
        model: the last network that was tried, or the one that met the target.
        design: how it was trained.
        replicas: copies whose median is the output.
        accuracy: on the verification data, clean.
        verification: None where theory gave up before.
        steps: the path.
        partial: it was interrupted; ``model`` is the last network that was trained, and nothing is
            promised of it.
    """

    reached: bool
    statement: str
    model: nn.Module
    design: Design
    replicas: int
    accuracy: float
    verification: Verification | None
    steps: list[Step]
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        def plain(step: Step) -> dict[str, Any]:
            design = {**asdict(step.design), "architecture": str(step.design.architecture)}
            return {**asdict(step), "design": design}

        return {
            "schema": 1,
            "partial": self.partial,
            "reached": self.reached,
            "statement": self.statement,
            "architecture": str(self.design.architecture),
            "replicas": self.replicas,
            "accuracy": self.accuracy,
            "verification": None if self.verification is None else asdict(self.verification),
            "steps": [plain(step) for step in self.steps],
        }


@dataclass(frozen=True)
class Limits:
    """How far hardening may go.

    Attributes:
        width: hidden layers may grow by this factor.
        replicas: most copies.
        accuracy_loss: clean accuracy that may be given up, against the first network.
        steps: networks trained at most.
        samples: Monte Carlo samples of the verification at most.
    """

    width: float = 8.0
    replicas: int = 9
    accuracy_loss: float = 0.02
    steps: int = 16
    samples: int = 400_000

    def __post_init__(self) -> None:
        number("width", self.width, "a factor of at least 1", least=1)
        whole("replicas", self.replicas, 1, MOST_COPIES)
        whole("steps", self.steps, 1, MOST_STEPS)
        sample_count("samples", self.samples, 100)
        number("accuracy_loss", self.accuracy_loss, "a share, as 0.02", least=0, most=1)


def harden(
    architecture: str | Architecture,
    training: Data,
    test: Data,
    faults: Faults,
    *,
    epsilon: float,
    delta: float,
    sites: str = "hidden",
    method: Method = "saddlepoint",
    recipe: Recipe | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    report: Callable[[Step], None] | None = None,
) -> Hardened:
    """Trains networks until one, or the median of some, meets the target.

    Args:
        architecture: where to start; hidden layers may be widened.
        training: a tenth of it is held out to decide with.
        test: only for the verification.
        faults, sites: as for ``FaultSpace``.
        epsilon: the change of an output that counts as a failure, in units of the outputs.
        delta: the failure probability allowed, averaged over inputs.
        method: ``saddlepoint``, or ``paper`` for arXiv 1902.01686's own way.
        recipe: how to train each network.
        limits: how far to go.
        seed: of everything.
        confidence: of the verification.
        report: called with each step as it is decided.

    Raises:
        ArgumentError: an argument out of its range, or data that does not fit.
        Interrupted: Ctrl-C; its ``partial`` is what was tried until then, never ``reached``: the
            last network that was trained, with the samples that its verification had drawn.
    """
    epsilon = number("epsilon", epsilon, "a positive number in the units of the outputs", above=0)
    delta = number("delta", delta, "a probability strictly between 0 and 1", above=0, below=1)
    confidence = number("confidence", confidence, "a number between 0 and 1", above=0, below=1)
    one_of("method", method, ("saddlepoint", "paper"))
    check_independent(faults_of(faults), "hardening")
    check_drawable(faults_of(faults), "hardening")
    if lacking := lacking_for_tails(faults_of(faults)):
        raise ArgumentError(f"faults: {lacking}")
    for name, data in (("training", training), ("test", test)):
        if not isinstance(data, Data):
            raise ArgumentError(
                f"{name}={data!r}; give a crashsim.files.data.Data, as load_data returns"
            )
    for name, given, kind in (("recipe", recipe, Recipe), ("limits", limits, Limits)):
        if given is not None and not isinstance(given, kind):
            raise ArgumentError(f"{name}={given!r}; give a {kind.__name__}")
    if not isinstance(architecture, str | Architecture):
        raise ArgumentError(f"architecture={architecture!r}; give one as '64-50-10:sigmoid'")
    built = parse_architecture(architecture) if isinstance(architecture, str) else architecture
    if len(built.sizes) < 3:
        raise ArgumentError(f"architecture={str(built)!r}: has no hidden layer to harden")
    return _Hardening(
        built, training, test, faults, sites, epsilon, delta, method, recipe or Recipe(seed=seed),
        limits or Limits(), seed, confidence, report,
    ).run()  # fmt: skip


class _Hardening:
    """The loop, and what it knows."""

    def __init__(
        self,
        start: Architecture,
        training: Data,
        test: Data,
        faults: Faults,
        sites: str,
        epsilon: float,
        delta: float,
        method: Method,
        recipe: Recipe,
        limits: Limits,
        seed: int,
        confidence: float,
        report: Callable[[Step], None] | None,
    ) -> None:
        check_targets(start.build(seed), test)
        self._start, self._test = start, test
        self._training, self._held_out = _split(training)
        self._faults, self._sites = faults, sites
        self._epsilon, self._delta, self._method = epsilon, delta, method
        self._recipe, self._limits, self._seed = recipe, limits, seed
        self._confidence, self._report = confidence, report
        self._steps: list[Step] = []
        self._looks = 0
        self._highest = _MAX_STRENGTH  # variance strength that accuracy has been seen to bear
        self._best_accuracy = 0.0
        self._last: tuple[nn.Module, Design] | None = None  # that was trained

    def run(self) -> Hardened:
        try:
            return self._run()
        except KeyboardInterrupt as stop:
            if self._last is None:
                raise
            found = getattr(stop, "partial", None)
            verification = found if isinstance(found, Verification) else None
            partial = self._cut_short(*self._last, verification)
            raise Interrupted("interrupted; partial holds what was tried", partial) from stop

    def _run(self) -> Hardened:
        design: Design | None = Design(self._start)
        verification = None
        model: nn.Module = nn.Identity()
        while design is not None and len(self._steps) < self._limits.steps:
            current = design
            model = self._train(current)
            self._last = model, current
            reached_accuracy = accuracy(model, self._held_out)
            self._best_accuracy = max(self._best_accuracy, reached_accuracy)
            judged = self._judge(model)
            failed = ""
            lost = self._best_accuracy - reached_accuracy
            counts = judged.worth_trying if lost <= self._limits.accuracy_loss else []
            for replicas in counts:  # the fewest first: one network, where one suffices
                verification = self._verify(model, replicas)
                if verification.met:
                    enough = replace(judged, replicas=replicas)
                    step = self._record(current, reached_accuracy, enough, _promise(enough))
                    return self._finish(model, step, verification)
                failed = (
                    f"theory promises {judged.failure:.2g} of one network, but Monte Carlo finds "
                    f"up to {verification.high:.2g} of {_copies(replicas)}; "
                )
            design, reason = self._next(current, reached_accuracy, judged)
            step = self._record(current, reached_accuracy, judged, failed + reason)
        if design is not None:
            reason = f"the limit of {self._limits.steps} steps is reached"
        return self._give_up(model, step, verification, reason)

    # Train.

    def _train(self, design: Design) -> nn.Module:
        model = design.architecture.build(self._seed)
        with attached_penalties(
            model, self._faults, design.strengths, self._sites, seed=self._seed
        ) as penalties:
            train_classifier(model, self._training, self._recipe, penalties=penalties)
        return model

    # Judge.

    def _judge(self, model: nn.Module) -> Judgement:
        inputs = self._held_out.first(DESIGN_INPUTS).inputs
        space = double_precision(FaultSpace(model, inputs, self._faults, self._sites))
        if self._method == "paper":
            return judge_as_paper(model, space, self._epsilon, self._delta)
        return judge(space, self._epsilon, self._delta, self._limits.replicas)

    # Decide.

    def _next(self, design: Design, reached: float, judged: Judgement) -> tuple[Design | None, str]:
        """The next design and why; None where nothing is left to try."""
        lost = self._best_accuracy - reached
        if lost > self._limits.accuracy_loss and design.variance > 0:
            self._highest = design.variance / _GROWTH
            calmer = replace(design, variance=self._highest if self._highest >= 1e-3 else 0.0)
            why = f"accuracy fell by {lost:.1%}: less strength, more neurons"
            return self._wider(calmer, why)
        if self._method == "paper":
            q, delta_0 = judged.facts["q"], judged.facts["delta_0"]
            if q < _BALANCED and design.balance < 1e-1:
                strength = design.balance * _GROWTH or 1e-3
                return (
                    replace(design, balance=strength),
                    f"q = {q:.2g} < {_BALANCED}: some neurons count for too much; balance them",
                )
            if delta_0 > _CROWDED:
                return self._wider(
                    design, f"delta_0 = {delta_0:.2g}: too few neurons to count on their average"
                )
            if judged.facts["remainder"] > self._epsilon / 2 and design.continuity < 1e-1:
                strength = design.continuity * _GROWTH or 1e-3
                return (
                    replace(design, continuity=strength),
                    f"the remainder {judged.facts['remainder']:.2g} is too large beside epsilon: "
                    "neighbouring neurons must compute similar functions",
                )
        said = f"one network fails with probability {judged.failure:.2g}"
        stronger = design.variance * _GROWTH or _FIRST_STRENGTH
        if stronger <= self._highest:
            return replace(design, variance=stronger), f"{said}: penalise the variance more"
        return self._wider(design, f"{said} and accuracy bears no more strength: add neurons")

    def _wider(self, design: Design, why: str) -> tuple[Design | None, str]:
        sizes = design.architecture.sizes
        hidden = tuple(2 * n for n in sizes[1:-1])
        if hidden[0] > self._limits.width * self._start.sizes[1]:
            return None, f"{why}; but the layers may grow {self._limits.width:g} times at most"
        wider = replace(design.architecture, sizes=(sizes[0], *hidden, sizes[-1]))
        return replace(design, architecture=wider), why

    # Verify.

    def _verify(self, model: nn.Module, replicas: int) -> Verification:
        """Fresh faults on fresh inputs; look j may err with probability alpha / (j (j + 1))."""
        self._looks += 1
        alpha = (1 - self._confidence) / (self._looks * (self._looks + 1))
        seed = ((self._seed + 1) * 1_000_003 + self._looks) % 2**64
        inputs = self._test.first(VERIFY_INPUTS).inputs
        space = FaultSpace(model, inputs, self._faults, self._sites)
        return verify(
            space, self._epsilon, self._delta, replicas, seed, 1 - alpha, self._limits.samples
        )

    # Report.

    def _record(self, design: Design, reached: float, judged: Judgement, reason: str) -> Step:
        step = Step(
            len(self._steps) + 1,
            design,
            reached,
            judged.failure,
            judged.replicas,
            reason,
            judged.facts,
        )
        self._steps.append(step)
        if self._report:
            self._report(step)
        return step

    def _finish(self, model: nn.Module, step: Step, verification: Verification) -> Hardened:
        assert step.replicas is not None
        statement = (
            f"Reached: {_copies(step.replicas)} {step.design.architecture} moves an output by "
            f"{self._epsilon:g} or more with probability {verification.failure:.2g}, at most "
            f"{verification.high:.2g} with {verification.confidence:.4g} confidence; asked for "
            f"{self._delta:g}."
        )
        return Hardened(
            True, statement, model, step.design, step.replicas, accuracy(model, self._test),
            verification, self._steps,
        )  # fmt: skip

    def _give_up(
        self, model: nn.Module, step: Step, verification: Verification | None, reason: str
    ) -> Hardened:
        best = min(self._steps, key=lambda s: s.failure)
        shift = step.facts.get("shift", 0.0)
        why = ""
        if shift >= self._epsilon:
            why = (
                f" The mean shift of an output, {shift:.2g}, exceeds epsilon: no number of "
                "replicas averages it out; raise epsilon or lower the faults' rate."
            )
        elif verification is not None and verification.how == "simulation":
            why = (
                f" Monte Carlo proves no less than {verification.high:.2g} with "
                f"{verification.samples:,} samples."
            )
        statement = (
            f"Not reached: {reason}. The best single network fails with probability "
            f"{best.failure:.2g} by theory ({best.design.architecture}, step {best.number}); asked "
            f"for {self._delta:g}, with up to {self._limits.replicas} replicas.{why}"
        )
        return Hardened(
            False, statement, model, step.design, step.replicas or 1, accuracy(model, self._test),
            verification, self._steps,
        )  # fmt: skip

    def _cut_short(
        self, model: nn.Module, design: Design, verification: Verification | None
    ) -> Hardened:
        """What an interrupt leaves; of its verification, the samples that were drawn."""
        drawn = "before it was verified"
        if verification is not None:
            drawn = f"after {verification.samples:,} samples of its verification"
        statement = (
            f"Interrupted {drawn}: {design.architecture} is the last network that was trained, and "
            f"nothing is promised of it."
        )
        return Hardened(
            False, statement, model, design, 1, accuracy(model, self._test), verification,
            self._steps, partial=True,
        )  # fmt: skip


def _copies(replicas: int) -> str:
    return "one network" if replicas == 1 else f"the median of {replicas} networks"


def _promise(judged: Judgement) -> str:
    if judged.replicas == 1:
        return f"theory promises {judged.failure:.2g}: enough; verified"
    return (
        f"one network fails with probability {judged.failure:.2g}: the median of "
        f"{judged.replicas} is enough; verified"
    )


def _split(data: Data) -> tuple[Data, Data]:
    """Nine tenths to train on, one tenth to decide with."""
    cut = max(1, len(data.inputs) // 10)
    if len(data.inputs) < 2:
        raise ArgumentError(f"data={data.name!r} has one example; give two or more to train on")
    if data.targets is None:
        raise ArgumentError(f"data={data.name!r} has no targets; give classes to train on")
    return (
        replace(data, inputs=data.inputs[cut:], targets=data.targets[cut:]),
        replace(data, inputs=data.inputs[:cut], targets=data.targets[:cut]),
    )
