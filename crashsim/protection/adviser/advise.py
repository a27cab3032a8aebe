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
    check_seed,
    fraction,
    instance,
    number,
    sample_count,
    shown,
    whole,
)
from crashsim.campaign.store import Store, store_of
from crashsim.coordinates.placement import Faults, Placement
from crashsim.errors import ArgumentError
from crashsim.faults import NeuronCrash, WordFault
from crashsim.model.inputs import BatchAxis, Inputs, ModelInputs
from crashsim.model.labelled import InMemory
from crashsim.noticing import collecting, notice
from crashsim.protection.adviser.choosing import Options
from crashsim.protection.adviser.groups import Groups, Harm
from crashsim.protection.adviser.macs import macs_by_site
from crashsim.protection.adviser.margins import margins_of, right_classes
from crashsim.protection.adviser.measured import Measured, measured
from crashsim.protection.adviser.search import Found, Search, Wanted
from crashsim.protection.adviser.virtual_plans import VirtualChips, usual_chips
from crashsim.protection.plan import Plan
from crashsim.protection.protected import Protected, Residual
from crashsim.protection.schemes import SECDED, TMR, Cost, Scheme, Scrubbing
from crashsim.results.estimate import Interval
from crashsim.results.plan.plan_record import ChosenFacts, FrontFacts
from crashsim.results.schema import RangeFacts
from crashsim.scoring.judging import read_given
from crashsim.scoring.provenance import describe_fault, describe_model, describe_placed, versions
from crashsim.space import FaultSpace

METRICS = ("accuracy", "error-rate", "class-change")
CHIPS = 400  # that a plan is measured by, unless another number is asked for
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
    asked = _Asked.of(target, metric, share, budget, schemes, chips, virtual, seed, confidence)
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


@dataclass(frozen=True)
class _Asked:
    """What was asked for, checked."""

    target: float | None
    metric: str | None
    share: float | None
    budget: float | None
    schemes: tuple[Scheme, ...] | None
    chips: int
    virtual: int | None
    seed: int
    confidence: float

    @classmethod
    def of(
        cls, target: Any, metric: Any, share: Any, budget: Any, schemes: Any, chips: Any,
        virtual: Any, seed: Any, confidence: Any,
    ) -> _Asked:  # fmt: skip
        if metric is not None and metric not in METRICS:
            raise ArgumentError(f"metric={shown(metric)}; give one of {', '.join(METRICS)}")
        if target is not None:
            target = number("target", target, "a share of examples, such as 0.95", least=0, most=1)
        if budget is not None:
            budget = number("budget", budget, "an overhead, such as 0.1 for a tenth", least=0)
        if target is None and budget is None:
            raise ArgumentError(
                "target=None, budget=None: give the value of the metric that is to be reached, or "
                "the most overhead"
            )
        if share is not None:
            share = fraction("share", share)
            if target is None:
                raise ArgumentError(f"share={share}: of chips that reach what? give target, too")
        if schemes is not None:
            listed = (schemes,) if isinstance(schemes, Scheme) else schemes
            if isinstance(listed, str) or not isinstance(listed, Iterable):
                raise ArgumentError(f"schemes={shown(schemes)}; give a list of schemes")
            schemes = tuple(listed)
            for scheme in schemes:
                instance("schemes", scheme, Scheme, "protection schemes, such as SECDED()")
            if not schemes:
                raise ArgumentError("schemes=[]: nothing can be protected; give some, or None")
        return cls(
            target, metric, share, budget, schemes,
            CHIPS if chips is None else sample_count("chips", chips, 10),
            None if virtual is None else sample_count("virtual", virtual, 20),
            check_seed(seed),
            fraction("confidence", confidence),
        )  # fmt: skip


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

    asked: _Asked
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
        asked: _Asked,
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
        return self._described(chosen, measures[0], judges[1], bare, names)

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
            gain = before - after if self.lower_is_better else after - before
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

    @property
    def lower_is_better(self) -> bool:
        return self.metric != "accuracy"

    def _value(self, right: float) -> float:
        """The metric of a share of right examples, and the other way round."""
        return 1 - right if self.lower_is_better else right

    def _chosen(
        self, measures: list[Options], judge: VirtualChips, whole: tuple[Scheme, ...]
    ) -> _Chosen:
        target = None if self.asked.target is None else self._value(self.asked.target)
        budget = np.inf if self.asked.budget is None else self.asked.budget
        found: _Chosen | None = None
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
            found = _Chosen(front, best, schemes, whole, real, rounds, search.wanted.goal)
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
            off = real.mean.value - target if self.lower_is_better else target - real.mean.value
            return float(off)
        if real.accepted is not None and real.accepted.value >= share:
            return 0.0
        low = np.quantile(real.values, share if self.lower_is_better else 1 - share)
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

    # What is told of it.

    def _described(
        self, chosen: _Chosen, options: Options, judge: VirtualChips, bare: FaultSpace,
        names: Mapping[str, str],
    ) -> Plan:  # fmt: skip
        asked = self.asked
        without = self._measured((), self.halves[1], asked.chips)
        own, none = (
            self._value(float(judge.accuracies(Residual(s)).mean()))
            for s in (chosen.schemes, chosen.whole)
        )
        rows = _rows(chosen, options)
        real = chosen.real
        agrees = bool(real.mean.low <= own <= real.mean.high)
        reached = self._reached(real)
        self._add_notes(chosen, own, agrees, reached)
        total = Cost()
        for row in rows:
            total = total + Cost(**row["cost"])
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
            metric=self.metric,
            lower_is_better=self.lower_is_better,
            clean=real.clean,
            target=asked.target,
            share=asked.share,
            budget=asked.budget,
            chosen=rows,
            overhead=chosen.best.overhead,
            cost=total.to_dict(),
            front=[self._front_row(f, f is chosen.best, options) for f in chosen.front],
            verified={
                **_range(real.mean),
                "unprotected": _range(without.mean),
                "accepted": None
                if real.accepted is None
                else {"level": real.level, **_range(real.accepted)},
                "predicted": own,
                "predicted_unprotected": none,
                "agrees": agrees,
                "chips": asked.chips,
                "examples": len(self.halves[1][0]),
                "rounds": chosen.rounds,
            },
            reached=reached,
            told=self.told,
            virtual_chips=judge.chips,
            seed=asked.seed,
            confidence=asked.confidence,
            versions=versions(),
            schemes=chosen.schemes,
        )

    def _reached(self, real: Measured) -> bool | None:
        """Whether the interval says that the target is reached; None where it leaves that open."""
        target, share = self.asked.target, self.asked.share
        if target is None:
            return None
        if share is not None:
            assert real.accepted is not None
            low, high, target = real.accepted.low, real.accepted.high, share
        elif self.lower_is_better:
            low, high, target = -real.mean.high, -real.mean.low, -target
        else:
            low, high = real.mean.low, real.mean.high
        if float(low) >= target:
            return True
        return False if float(high) < target else None

    def _add_notes(self, chosen: _Chosen, own: float, agrees: bool, reached: bool | None) -> None:
        real, asked = chosen.real, self.asked
        if not agrees:
            self.told.append(
                f"virtual chips predict {own:.4g}, and {real.mean.value:.4g} "
                f"[{real.mean.low:.4g}, {real.mean.high:.4g}] is measured: faults or schemes act "
                "together, beyond first order"
            )
        if asked.target is not None and chosen.best.worth < (chosen.goal or 0.0):
            most = "this budget" if asked.budget is not None else "these schemes"
            self.told.append(
                f"the target is out of reach of {most}: the best plan has {self.metric} "
                f"{real.mean.value:.4g} [{real.mean.low:.4g}, {real.mean.high:.4g}]"
            )
        elif reached is None and asked.target is not None:
            self.told.append(
                "the interval leaves open whether the target is reached; give more chips"
            )
        elif reached is False:
            self.told.append("the target is not reached, as measured")
        if chosen.rounds > 1:
            self.told.append(
                f"chosen {chosen.rounds} times: what was measured fell short of what was predicted"
            )

    def _front_row(self, found: Found, is_chosen: bool, options: Options) -> FrontFacts:
        target = self.asked.target
        accepted = None
        if target is not None:
            right = self._value(target)
            accepted = float((found.accuracies >= right).mean())
        used = sorted({options.schemes[i].name for i in np.unique(found.choice) if i >= 0})
        return {
            "overhead": found.overhead,
            "protected": options.groups.share(found.choice >= 0),
            "predicted": self._value(float(found.accuracies.mean())),
            "accepted": accepted,
            "schemes": used,
            "chosen": is_chosen,
        }


@dataclass(frozen=True)
class _Chosen:
    """The plan that was chosen, with those that no other beats, and what was measured of it."""

    front: list[Found]
    best: Found
    schemes: tuple[Scheme, ...]
    whole: tuple[Scheme, ...]
    real: Measured
    rounds: int
    goal: float | None = None


def _rows(chosen: _Chosen, options: Options) -> list[ChosenFacts]:
    """What is protected, a row for each scheme and site."""
    groups, rows = options.groups, []
    for scheme in chosen.whole:
        for cost in groups.cost_of_whole(scheme):
            rows.append(_row(scheme, "*", [], 0, 0, cost, groups))
    for i, scheme in enumerate(options.schemes):
        at = groups.coordinates(chosen.best.choice == i)
        for site, cost in groups.cost(scheme, at).items():
            p = next(p for p in groups.space.placements if p.site.name == site)
            bits: list[int] = []
            if isinstance(p.fault, WordFault):
                which = np.unique(at[site] % len(p.fault.masks))
                bits = [p.fault.masks[w].bit_length() - 1 for w in which]
            rows.append(_row(scheme, site, bits, len(at[site]), p.size, cost, groups))
    return rows


def _row(
    scheme: Scheme, site: str, bits: list[int], count: int, of: int, cost: Cost, groups: Groups
) -> ChosenFacts:
    return {
        "scheme": scheme.name,
        "site": site,
        "bits": bits,
        "coordinates": count,
        "of": of,
        "cost": cost.to_dict(),
        "overhead": groups.overhead(cost),
    }


def _hardening(whole: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    """Schemes that change what the network computes, or how often faults strike: the rest leaves
    of faults what virtual chips reckon themselves."""
    return tuple(scheme for scheme in whole if not scheme.clips_words)


def _is_of_neurons(p: Placement) -> bool:
    return not isinstance(p.fault, WordFault)


def _range(interval: Interval) -> RangeFacts:
    return {
        "value": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
    }
