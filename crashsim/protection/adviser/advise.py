"""``protect``: what to protect, and how, for a target or under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from crashsim.arguments import (
    callback,
    instance,
    whole,
)
from crashsim.campaign.store import Store, store_of
from crashsim.coordinates.placement import Faults, Placement
from crashsim.errors import ArgumentError
from crashsim.faults import NeuronCrash, WordFault
from crashsim.model.inputs import BatchAxis, Inputs, ModelInputs
from crashsim.model.labelled import InMemory
from crashsim.noticing import collecting, notice
from crashsim.protection.adviser.asked import Asked, as_metric, lower_is_better
from crashsim.protection.adviser.choosing import Options
from crashsim.protection.adviser.described import (
    Chosen,
    Verdict,
    accepted,
    as_range,
    front_rows,
    rows_of,
    total_cost,
)
from crashsim.protection.adviser.groups import Groups, Harm
from crashsim.protection.adviser.macs import macs_by_site
from crashsim.protection.adviser.margins import margins_of, right_classes
from crashsim.protection.adviser.measured import Measured, measured
from crashsim.protection.adviser.search import Search, Wanted
from crashsim.protection.adviser.virtual_plans import VirtualChips, usual_chips
from crashsim.protection.plan import Plan
from crashsim.protection.protected import Protected, Residual
from crashsim.protection.schemes import SECDED, TMR, Scheme, Scrubbing
from crashsim.scoring.judging import read_given
from crashsim.scoring.provenance import describe_fault, describe_model, describe_placed, versions
from crashsim.space import FaultSpace

_ROUNDS = 3  # times that a plan is measured, and chosen anew where it falls short
_EXAMPLES = 2048  # that are looked at, half of them to choose by
_FEWEST = 4
_TRIED = 100  # chips by which it is measured whether clipping pays
_PLANS = 60  # that are judged, about
_MEMORY = 2**31

Progress = Callable[[str, int, int], None]


def protect(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None = None,
    sites: str = "hidden",
    *,
    target: float | None = None,
    metric: str | None = None,
    share: float | None = None,
    budget: float | None = None,
    schemes: Iterable[Scheme] | None = None,
    by: Any = None,
    chips: int | None = None,
    virtual: int | None = None,
    seed: int = 0,
    targets: Any = None,
    memory: int = _MEMORY,
    confidence: float = 0.95,
    progress: Progress | None = None,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
    names: Mapping[str, str] | None = None,
    readout: str | int | None = None,
    batch_axis: BatchAxis = 0,
) -> Plan:
    """What to protect against faults, and how: the cheapest plan for a target, or the best in a
    budget.

    Half of the examples choose: first-order sums over coordinates by the linear prediction of the
    margins, an integer programme over groups and schemes, and a walk, all judged by virtual chips
    with the schemes in place. The other half measures the plan by Monte Carlo, with its schemes;
    where it falls short of the target, a plan with more room is chosen and measured anew.

    Args:
        model, inputs, faults, sites: as of ``sweep``; ``inputs`` with targets are a pair (x, y), a
            mapping, a ``Dataset`` or ``DataLoader``, of which up to 2,048 examples are taken.
        target: the value of the metric to be reached by the mean over chips, or by a ``share`` of
            them; None: the best plan that the budget allows.
        metric: ``"accuracy"``, ``"error-rate"`` or ``"class-change"``; by default accuracy where
            there are targets.
        share: of chips that are to reach the target (yield), such as 0.99.
        budget: the most overhead: what a plan adds, as a share of the network's own struck bits and
            of its operations, added up.
        schemes: those that may be used, by default ``SECDED()`` and ``TMR(of="words")`` for words,
            ``TMR(of="neurons")`` for neurons. Clipping, where it is among them, is used for the
            whole network if it pays; ``Scrubbing`` always.
        by: what can be protected alone, names of parts such as ``("layer", "bit")``, the default
            for words; ``"coordinate"``: each coordinate by itself. By default of neurons
            ``("layer", "channel")``.
        chips: that the plan is measured by, 400 if not given.
        virtual: number of virtual chips that judge each candidate, by default 400 to 2,000, more
            where they cost less.
        seed: the numbers depend on it alone.
        targets: (B, ...) where the inputs do not hold them.
        memory: bytes that slopes may take, about.
        confidence: of the intervals.
        progress: called with what is done, the number done and their number.
        executor: that measures chips; the result is the same without one.
        store: a folder that keeps finished blocks of measured chips (of up to 1,024), for the same
            call to resume.
        names: what to call the ``model`` and the ``inputs`` in reports.
        readout, batch_axis: as of ``score``.

    Raises:
        ArgumentError: an argument makes no sense; neither a target nor a budget.
        NotApplicableError: the outputs have no derivatives, or are no classes.

    Example:
        >>> import torch, crashsim
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> x = torch.randn(60, 4)
        >>> fault = crashsim.BitFlip(p=2e-3, format="int8")
        >>> plan = crashsim.protect(net.eval(), x, fault, "weights", budget=0.1, chips=50)
        >>> plan.overhead <= 0.1
        True
    """
    asked = Asked.of(target, metric, share, budget, schemes, chips, virtual, seed, confidence)
    callback("progress", progress)
    memory = whole("memory", memory, 2**20, 2**50)
    if names is not None:
        instance("names", names, Mapping, "a mapping such as {'model': 'mine'}")
    with collecting() as noticed:
        given = read_given(model, inputs, targets, batch_axis, 1)
        taken, classes = given.examples.first(_EXAMPLES)
        given_faults = NeuronCrash(p=0.01) if faults is None else faults

        def struck(some: nn.Module, examples: Any) -> FaultSpace:
            return FaultSpace(
                some, examples, given_faults, sites, readout=readout, batch_axis=batch_axis
            )

        work = _Work.of(asked, model, struck, taken, classes)
        work.memory, work.executor, work.progress = memory, executor, progress
        work.store = store_of(store)
        plan = work.plan(by, names or {})
    plan = replace(plan, warnings=list(noticed))
    for message in plan.warnings:
        notice(message)
    return plan


@dataclass
class _Work:
    """A plan in the making.

    Attributes:
        asked: what was asked for.
        model: unprotected.
        struck: the faults at a model, with examples.
        metric: its name.
        halves: examples to choose by, and to measure by, with the classes that are right.
        memory, executor, store, progress: as of ``protect``.
        told: what to know about the plan.
    """

    asked: Asked
    model: nn.Module
    struck: Callable[[nn.Module, Inputs], FaultSpace]
    metric: str
    halves: list[tuple[Inputs, NDArray[np.int64]]]
    memory: int = _MEMORY
    executor: Executor | None = None
    store: Store | None = None
    progress: Progress | None = None
    told: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        asked: Asked,
        model: nn.Module,
        struck: Callable[[nn.Module, Inputs], FaultSpace],
        taken: Inputs,
        classes: Any,
    ) -> _Work:
        metric = asked.metric or ("class-change" if classes is None else "accuracy")
        if metric != "class-change" and classes is None:
            raise ArgumentError(f"metric={metric!r}: give targets, or metric='class-change'")
        if len(taken) < _FEWEST:
            raise ArgumentError(
                f"inputs: {len(taken)} examples; give at least {_FEWEST}: half of them choose, the "
                "others measure"
            )
        known = None if metric == "class-change" else np.asarray(classes)
        if known is not None and (known.ndim != 1 or known.dtype.kind not in "iu"):
            raise ArgumentError("targets: give the number of one class for each example")
        space = struck(model, taken)
        right = right_classes(space, known).astype(np.int64)
        if right.min() < 0 or right.max() >= space.K:
            raise ArgumentError(f"targets: give numbers of classes from 0 to {space.K - 1}")
        numbers = [np.arange(start, len(taken), 2) for start in (0, 1)]
        halves = [(space.examples.chosen(half), right[half]) for half in numbers]
        return cls(asked, model, struck, metric, halves)

    # What may be used.

    def plan(self, by: Any, names: Mapping[str, str]) -> Plan:
        """Chooses, measures, and chooses anew where the target is missed."""
        bare = self.struck(self.model, self._first)
        whole, some = self._schemes(bare)
        whole = self._that_pay(self._within_budget(whole, bare))
        space = self.struck(self._protected(_hardening(whole)), self._first)
        clips = any(scheme.clips_words for scheme in whole)
        margins = [margins_of(space, *half, self.memory // 2, clips) for half in self.halves]
        sites = {p.site.name: p.site.module for p in space.placements if _is_of_neurons(p)}
        groups = Groups.of(
            space, self._by(by, space), macs_by_site(space.model, self._first, sites)
        )
        measures = Options.by_measure(groups, some, Harm.measures(margins[0]))
        count = self.asked.virtual or usual_chips(margins[0])
        judges = [VirtualChips(m, self.asked.seed, count, i) for i, m in enumerate(margins)]
        chosen = self._chosen(measures, judges[0], whole)
        without = self._measured((), self.halves[1], self.asked.chips)
        predicted, bare_predicted = (
            as_metric(self.metric, float(judges[1].accuracies(Residual(schemes)).mean()))
            for schemes in (chosen.schemes, chosen.whole)
        )
        verdict = Verdict(self.asked, self.metric, chosen, predicted)
        rows = rows_of(chosen, measures[0])
        return Plan(
            model=describe_model(bare, names),
            inputs={
                "source": names.get("inputs"),
                "count": sum(len(inputs) for inputs, _ in self.halves),
                "shape": bare.examples.shapes(),
            },
            faults=[describe_fault(p) for p in bare.placements],
            sites=[describe_placed(p) for p in bare.placements],
            coordinates=bare.N,
            chosen=rows,
            cost=total_cost(rows),
            front=front_rows(chosen, measures[0], self.asked, self.metric),
            verified={
                **as_range(chosen.real.mean),
                "unprotected": as_range(without.mean),
                "accepted": accepted(chosen.real),
                "predicted": predicted,
                "predicted_unprotected": bare_predicted,
                "agrees": verdict.agrees,
                "chips": self.asked.chips,
                "examples": len(self.halves[1][0]),
                "rounds": chosen.rounds,
            },
            metric=self.metric,
            lower_is_better=lower_is_better(self.metric),
            clean=chosen.real.clean,
            target=self.asked.target,
            share=self.asked.share,
            budget=self.asked.budget,
            overhead=chosen.best.overhead,
            reached=verdict.reached,
            told=[*self.told, *verdict.notes()],
            virtual_chips=judges[1].chips,
            seed=self.asked.seed,
            confidence=self.asked.confidence,
            versions=versions(),
            schemes=chosen.schemes,
        )

    @property
    def _first(self) -> Inputs:
        return self.halves[0][0].part(0, 1)

    def _protected(self, schemes: tuple[Scheme, ...]) -> nn.Module:
        return Protected(self.model, schemes, data=self.halves[0][0])

    def _schemes(self, space: FaultSpace) -> tuple[tuple[Scheme, ...], tuple[Scheme, ...]]:
        """Those for the whole network, and those for some of its parts."""
        given = self.asked.schemes
        if given is None:
            are_words = any(not _is_of_neurons(p) for p in space.placements)
            are_neurons = any(_is_of_neurons(p) for p in space.placements)
            words = (SECDED(), TMR(of="words")) if are_words else ()
            given = (*words, *((TMR(of="neurons"),) if are_neurons else ()))
        whole = tuple(scheme for scheme in given if scheme.is_whole)
        return whole, tuple(scheme for scheme in given if not scheme.is_whole)

    def _by(self, by: Any, space: FaultSpace) -> Any:
        if isinstance(by, str) and by == "coordinate":
            return None
        if by is not None:
            return by
        of_neurons = all(_is_of_neurons(p) for p in space.placements)
        return ("layer", "channel") if of_neurons else ("layer", "bit")

    def _within_budget(self, whole: tuple[Scheme, ...], bare: FaultSpace) -> tuple[Scheme, ...]:
        """Those for the whole network that the budget allows, in the order of their being given."""
        left = np.inf if self.asked.budget is None else self.asked.budget
        groups = Groups(bare, None, macs_by_site(bare.model, self._first, {}))
        kept: tuple[Scheme, ...] = ()
        for scheme in whole:
            overhead = sum(map(groups.overhead, groups.cost_of_whole(scheme)))
            if overhead <= left:
                kept, left = (*kept, scheme), left - overhead
            else:
                self.told.append(
                    f"{scheme.name} is left out: its overhead of {overhead:.3g} is more than the "
                    "budget"
                )
        return kept

    def _that_pay(self, whole: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
        """Those for the whole network without which it is worse, on the examples that choose."""
        kept: tuple[Scheme, ...] = tuple(s for s in whole if isinstance(s, Scrubbing))
        for scheme in whole:
            if scheme in kept:
                continue
            before, after = (
                self._measured(schemes, self.halves[0], _TRIED).values
                for schemes in (kept, (*kept, scheme))
            )
            gain = before - after if lower_is_better(self.metric) else after - before
            error = float(gain.std(ddof=1)) / np.sqrt(len(gain))
            if gain.mean() > error:
                kept = (*kept, scheme)
            else:
                self.told.append(
                    f"{scheme.name} is left out: on {_TRIED} chips it changes {self.metric} by "
                    f"{gain.mean():+.2g} +- {error:.1g}"
                )
        return kept

    # Choosing and measuring.

    def _chosen(
        self, measures: list[Options], judge: VirtualChips, whole: tuple[Scheme, ...]
    ) -> Chosen:
        target = None if self.asked.target is None else as_metric(self.metric, self.asked.target)
        budget = np.inf if self.asked.budget is None else self.asked.budget
        found: Chosen | None = None
        room = 0.0
        for rounds in range(1, _ROUNDS + 1):
            goal = None if target is None else min(target + room, 1.0)
            search = Search(
                measures, judge, whole, Wanted(goal, self.asked.share, budget), self._tell
            )
            front = search.front()
            best = search.best(front)
            if found is not None and np.array_equal(best.choice, found.best.choice):
                break
            schemes = (*whole, *measures[0].made(best.choice))
            real = self._measured(schemes, self.halves[1], self.asked.chips)
            found = Chosen(front, best, schemes, whole, real, rounds, search.wanted.goal)
            short = self._shortfall(real)
            if short <= 0 or best.overhead >= front[-1].overhead:
                break
            room += short
        assert found is not None
        return found

    def _shortfall(self, real: Measured) -> float:
        """By how much a measured plan misses the target, in terms of right examples."""
        target, share = self.asked.target, self.asked.share
        if target is None:
            return 0.0
        if share is None:
            off = float(target - real.mean.value)
            return -off if lower_is_better(self.metric) else off
        if real.accepted is not None and real.accepted.value >= share:
            return 0.0
        low = np.quantile(real.values, share if lower_is_better(self.metric) else 1 - share)
        return max(float(abs(low - target)), 1e-4)

    def _measured(
        self, schemes: tuple[Scheme, ...], half: tuple[Inputs, NDArray[np.int64]], chips: int
    ) -> Measured:
        inputs, right = half
        space = self.struck(self._protected(schemes), self._first)
        targets = None if self.metric == "class-change" else right
        tell = None if self.progress is None else (lambda d, n: self._told_measured(d, n))
        return measured(
            space, InMemory(inputs, targets), self.metric, self.asked.target, chips,
            self.asked.seed, self.asked.confidence, self.executor, self.store, tell,
        )  # fmt: skip

    def _told_measured(self, done: int, count: int) -> None:
        if self.progress is not None:
            self.progress("chips", done, count)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress("plans", done, max(done, _PLANS))


def _hardening(whole: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    """Schemes that change what the network computes, or how often faults strike: the rest leaves
    of faults what virtual chips reckon themselves."""
    return tuple(scheme for scheme in whole if not scheme.clips_words)


def _is_of_neurons(p: Placement) -> bool:
    return not isinstance(p.fault, WordFault)
