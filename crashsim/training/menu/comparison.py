"""A comparison of ways to harden a network under way: each taken and judged, one chosen."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import nn

from crashsim.arguments import number, shown
from crashsim.errors import ArgumentError, CrashsimError, Interrupted, ModelError
from crashsim.model.failures import described
from crashsim.model.inputs import Inputs
from crashsim.model.labelled import Labelled
from crashsim.noticing import collecting, notice
from crashsim.results.hardening.record import TrainingFacts, VerifiedFacts, WayFacts
from crashsim.scoring.provenance import describe_fault, describe_model, versions
from crashsim.space import FaultSpace
from crashsim.training.menu.hardening import Hardening
from crashsim.training.menu.judges import (
    ByMetric,
    ByMovement,
    Judge,
    Judged,
    accuracy_without_faults,
    goodness,
    space_of,
)
from crashsim.training.menu.trained import (
    Trained,
    Trainer,
    operations_of_inference,
    operations_of_training,
    stored_bits,
)
from crashsim.training.menu.ways import FaultsBySite, Way, name_of

_MORE = 4  # times as many chips, where the interval does not tell
_COUNTED = 4  # examples with which operations are counted

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """What is to be reached."""

    target: float | None
    share: float | None
    epsilon: float | None

    @classmethod
    def of(cls, target: Any, share: Any, epsilon: Any, delta: Any, metric: Any) -> Asked:
        if (epsilon is None) != (delta is None):
            raise ArgumentError(f"epsilon={epsilon!r}, delta={delta!r}: give both, or neither")
        if epsilon is not None:
            given = {"target": target, "share": share, "metric": metric}
            for name, value in given.items():
                if value is not None:
                    raise ArgumentError(
                        f"{name}={shown(value)}: epsilon and delta say what is to be reached; "
                        "leave it out"
                    )
            epsilon = number("epsilon", epsilon, "a positive number in output units", above=0)
            return cls(number("delta", delta, "a probability", above=0, below=1), None, epsilon)
        if target is not None:
            target = number("target", target, "a value of the metric, such as 0.9")
        if share is not None:
            share = number("share", share, "a share of chips, such as 0.95", above=0, below=1)
            if target is None:
                raise ArgumentError(f"share={share}: of chips that reach what? give target too")
        return cls(target, share, None)


@dataclass
class _Judgement:
    """A way that was taken and judged."""

    parts: tuple[Way, ...]
    trained: nn.Module
    network: nn.Module
    space: FaultSpace
    judged: Judged
    facts: WayFacts


@dataclass
class Comparison:
    """A comparison under way."""

    trainer: Trainer
    faults: FaultsBySite
    entries: list[tuple[Way, ...]]
    deciding: Labelled
    verifying: Labelled
    clean: Inputs | None
    asked: Asked
    metric: Any
    lower_is_better: bool | None
    accuracy_loss: float
    equal: Literal["steps", "operations"]
    chips: int
    confidence: float
    options: dict[str, Any]
    executor: Executor | None
    progress: Progress
    names: dict[str, str]
    judge: Judge | None = None
    trainings: dict[tuple[Way, ...], Trained | CrashsimError] = field(default_factory=dict)
    operations: dict[tuple[Way, ...], float | None] = field(default_factory=dict)
    taken: list[_Judgement] = field(default_factory=list)
    ways: list[WayFacts] = field(default_factory=list)
    verified: list[VerifiedFacts] = field(default_factory=list)
    chosen: _Judgement | None = None
    reached: bool = False

    def all(self) -> Hardening:
        """Takes every way, chooses and verifies."""
        stop = None
        with collecting() as noticed:
            try:
                self._take_all()
                self._choose()
            except KeyboardInterrupt as error:
                if not self.taken:
                    raise
                stop = error
                self.reached = False
                self.chosen = self.chosen or max(self._allowed(), key=self._goodness)
        found = self._record(list(dict.fromkeys(noticed)), stop is not None)
        if stop is not None:
            message = f"interrupted after {len(self.ways)} ways; partial holds their comparison"
            raise Interrupted(message, found) from stop
        for message in found.warnings:
            notice(message)
        return found

    # Take.

    def _take_all(self) -> None:
        for number_, parts in enumerate(self.entries):
            self.progress("ways", number_, len(self.entries))
            try:
                taken = self._take(parts)
            except CrashsimError as error:
                if not self.taken:  # plain training, which everything is compared with
                    raise
                self.ways.append(_refused(name_of(parts), str(error)))
                continue
            self.taken.append(taken)
            self.ways.append(taken.facts)
        self.progress("ways", len(self.entries), len(self.entries))

    def _take(self, parts: tuple[Way, ...]) -> _Judgement:
        training = self._training(parts)
        network, faults, costs = training.model, self.faults, []
        few = self.deciding.first(_COUNTED)[0]
        for part in parts:
            before = partial(space_of, network, self.deciding, faults, self.options)
            network = _prepared(part, network, self.clean)
            faults = part.struck(faults, network)
            costs.append(part.cost(before, network, few))
        space = space_of(network, self.deciding, faults, self.options)
        judge = self.judge = self.judge or self._make_judge(space)
        alpha = (1 - self.confidence) / len(self.entries)
        judged = judge(space, self.deciding, self.trainer.seed, alpha / 2, 1)
        if judged.reaches == "open" and self.asked.target is not None:
            judged = judge(space, self.deciding, self.trainer.seed, alpha / 2, _MORE)
        operations = _counted(lambda: operations_of_inference(network, few))
        known = [cost for cost in costs if cost is not None]
        macs = None
        if operations is not None and len(known) == len(costs):
            macs = operations / 2 + sum(cost.macs for cost in known)
        each = self._operations(_recipe(parts))
        facts = WayFacts(
            name=name_of(parts),
            training=TrainingFacts(
                passes=training.passes,
                examples=training.examples,
                operations=(each and each * training.examples) or None,
                effort=training.effort,
            ),
            macs=macs,
            bits=stored_bits(network) + sum(cost.bits for cost in known),
            clean=judged.clean,
            accuracy=accuracy_without_faults(space, self.deciding),
            mean=judged.mean,
            accepted=judged.accepted,
            reaches=judged.reaches,
            refused="",
        )
        return _Judgement(parts, training.model, network, space, judged, facts)

    def _make_judge(self, space: FaultSpace) -> Judge:
        if self.asked.epsilon is not None:
            assert self.asked.target is not None
            return ByMovement(self.asked.epsilon, self.asked.target)
        return ByMetric.of(
            self.metric, space, self.deciding, self.lower_is_better, target=self.asked.target,
            share=self.asked.share, chips=self.chips, executor=self.executor,
        )  # fmt: skip

    def _training(self, parts: tuple[Way, ...]) -> Trained:
        """The training of these ways, which others may share."""
        recipe = _recipe(parts)
        if recipe not in self.trainings:
            try:
                effort = self._effort(recipe)
                self.trainings[recipe] = self.trainer.trained(recipe, self.faults, effort)
            except CrashsimError as error:
                self.trainings[recipe] = error
        found = self.trainings[recipe]
        if isinstance(found, CrashsimError):
            raise found
        return found

    def _operations(self, recipe: tuple[Way, ...]) -> float | None:
        if recipe not in self.operations:
            few = self.deciding.first(_COUNTED)[0]
            self.operations[recipe] = _counted(
                lambda: operations_of_training(self.trainer, recipe, self.faults, few)
            )
        return self.operations[recipe]

    def _effort(self, recipe: tuple[Way, ...]) -> float:
        """How much longer these ways may train, for the operations of the most expensive."""
        if self.equal == "steps":
            return 1.0
        mine = self._operations(recipe)
        every = [self._operations(_recipe(parts)) for parts in self.entries]
        known = [operations for operations in every if operations is not None]
        if mine is None:
            raise ArgumentError(
                "equal='operations': those of a training step cannot be counted; give equal='steps'"
            )
        return max(known) / mine

    # Choose.

    def _allowed(self) -> list[_Judgement]:
        """The ways that keep the accuracy without faults."""
        plain = self.taken[0].facts["accuracy"]
        if plain is None:
            return self.taken
        least = plain - self.accuracy_loss
        return [t for t in self.taken if (t.facts["accuracy"] or 0.0) >= least]

    def _goodness(self, taken: _Judgement) -> float:
        assert self.judge is not None
        return goodness(self.judge, taken.judged)

    def _choose(self) -> None:
        """The cheapest way that reaches the target, once it is confirmed; else the best."""
        allowed = self._allowed()
        best = max(allowed, key=self._goodness)
        tried = [best]
        if self.asked.target is not None:
            perhaps = [taken for taken in allowed if taken.judged.reaches != "no"]
            tried = sorted(perhaps, key=self._price) or [best]
        for taken in tried:
            self.chosen = taken
            if self._verify(taken):
                self.reached = True
                return
        self.chosen = best

    def _price(self, taken: _Judgement) -> tuple[float, ...]:
        """What an inference costs, what is stored, and the training; of equals the best first."""
        facts, training = taken.facts, taken.facts["training"]
        trained = 0.0 if training is None else training["operations"] or 0.0
        macs = np.inf if facts["macs"] is None else facts["macs"]
        return (macs, facts["bits"], trained, -self._goodness(taken))

    def _verify(self, taken: _Judgement) -> bool:
        """Whether a way reaches the target on fresh examples and chips; look j spends its share."""
        assert self.judge is not None
        look = len(self.verified) + 1
        alpha = (1 - self.confidence) / (look * (look + 1))
        seed = ((self.trainer.seed + 1) * 1_000_003 + look) % 2**64
        more = 1 if self.asked.target is None else _MORE
        judged = self.judge(taken.space, self.verifying, seed, alpha, more)
        self.verified.append(
            VerifiedFacts(
                name=taken.facts["name"],
                examples=self.verifying.count,
                clean=judged.clean,
                mean=judged.mean,
                population=judged.population,
                accepted=judged.accepted,
                confidence=1 - alpha,
                reaches=judged.reaches,
            )
        )
        return judged.reaches == "yes"

    # Tell.

    def _record(self, warnings: list[str], partial: bool) -> Hardening:
        assert self.judge is not None
        plain = self.taken[0]
        if plain.facts["accuracy"] is None and self.asked.epsilon is not None:
            warnings.append(
                "held_out: holds no classes, so that nothing keeps a way from moving little by "
                "answering little; compare the ways' outputs"
            )
        chosen = self.chosen
        return Hardening(
            model=describe_model(plain.space, self.names),
            faults=[describe_fault(p) for p in plain.space.placements],
            metric=self.judge.metric_name,
            lower_is_better=self.judge.lower_is_better,
            target=self.asked.target,
            share=self.asked.share,
            accuracy_loss=self.accuracy_loss,
            equal=self.equal,
            examples=self.deciding.count,
            chips=self.chips,
            seed=self.trainer.seed,
            confidence=self.confidence,
            ways=self.ways,
            chosen=None if chosen is None else chosen.facts["name"],
            reached=self.reached,
            verified=self.verified,
            warnings=warnings,
            versions=versions(),
            partial=partial,
            network=None if chosen is None else chosen.network,
            trained=None if chosen is None else chosen.trained,
        )


def _prepared(part: Way, model: nn.Module, clean: Inputs | None) -> nn.Module:
    """What a way makes of a trained model. Raises ModelError where it fails."""
    try:
        return part.prepared(model, clean)
    except CrashsimError:
        raise
    except Exception as error:
        raise ModelError(f"{part.name} fails on the trained model ({described(error)})") from error


def _recipe(parts: tuple[Way, ...]) -> tuple[Way, ...]:
    """Those of several ways that change how a network trains."""
    return tuple(part for part in parts if part.trains)


def _refused(name: str, why: str) -> WayFacts:
    return WayFacts(
        name=name, training=None, macs=None, bits=0.0, clean=None, accuracy=None, mean=None,
        accepted=None, reaches="open", refused=why,
    )  # fmt: skip


def _counted(count: Callable[[], float | None]) -> float | None:
    """A number of operations; None where they cannot be counted."""
    try:
        return count()
    except Exception:  # whatever a model does under a counter: the number is then not known
        return None
