"""Replicas: several independently faulty copies of a network and a vote among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from crashsim_theory import (
    PUBLISHED_LIMIT,
    TheoryError,
    median_failure,
    published_replicas,
    replicas_needed,
)
from torch import Tensor, nn

from crashsim.arguments import (
    MOST_COPIES,
    check_seed,
    fraction,
    instance,
    number,
    one_of,
    sample_count,
    whole,
)
from crashsim.arrays import Floats
from crashsim.coordinates.drawing import sample_block, sample_points
from crashsim.coordinates.placement import Faults
from crashsim.coordinates.points import Points, join
from crashsim.errors import ArgumentError, ModelError
from crashsim.importing import needed
from crashsim.metrics import predicted_class
from crashsim.model.checks import check_model, check_module
from crashsim.model.failures import explaining_failures
from crashsim.model.inputs import read_inputs
from crashsim.model.twins.twin import apart
from crashsim.protection.voters import VOTERS, Voter, make_voter
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.intervals import proportion_interval
from crashsim.space import FaultSpace
from crashsim.writing import write_picture

Attack = Literal["far", "flip", "rival", "little"]
ATTACKS: tuple[Attack, ...] = ("far", "flip", "rival", "little")


class Replicated(nn.Module):
    """R copies of a model, each with faults of its own, and a vote among their outputs.

    The faults are permanent, as on R chips: they depend on the seed alone and are the same for
    every input and call. For inference: outputs carry no gradient.

    Args:
        model: in evaluation mode.
        count: number of copies R.
        voter: a name of ``crashsim.protection.voters`` or a function from (R, B, K) to (B, K).
        faults: of each copy; None for copies that never fail by themselves.
        sites: that a single fault strikes.
        byzantine: how many of the copies lie, as ``attack`` says.
        attack: see ``lie``.
        f: bad copies that the voter allows for; by default as many as it can.
        seed: of the faults; another seed stands for other chips.
    """

    def __init__(
        self,
        model: nn.Module,
        count: int,
        voter: str | Voter = "median",
        *,
        faults: Faults | None = None,
        sites: str = "hidden",
        byzantine: int = 0,
        attack: Attack = "far",
        f: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_module(model)
        count = whole("count", count, 1, MOST_COPIES)
        byzantine = whole("byzantine", byzantine, 0, count)
        one_of("attack", attack, ATTACKS)
        self.model, self.count, self.faults, self.sites = model, count, faults, sites
        self.byzantine, self.attack, self.seed = byzantine, attack, check_seed(seed)
        self._vote = make_voter(voter, count, f)
        self.train(model.training)

    def copies(self, x: Tensor) -> Tensor:
        """Outputs of each copy, (R, B, K); the last ``byzantine`` ones lie."""
        if self.faults is None:
            clean = _clean(self.model, x)
            outputs = clean.expand(self.count, -1, -1)
        else:
            space = FaultSpace(self.model, x, self.faults, self.sites)
            points = sample_points(space.placements, self.seed, self.count)
            outputs = torch.from_numpy(space.outputs(points)).to(space.device, space.dtype)
        return lie(outputs, self.byzantine, self.attack)

    def forward(self, x: Tensor) -> Tensor:
        """The vote, (B, K)."""
        return self._vote(self.copies(x))


def _clean(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs (B, K) of copies without faults."""
    inputs = read_inputs(x)
    with torch.no_grad(), explaining_failures(model, inputs):
        outputs = inputs.call(apart(model))
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.is_meta:
            raise ModelError(
                f"model: returns {getattr(outputs, 'dtype', type(outputs).__name__)}; copies vote "
                "on real-valued outputs (logits)"
            )
        if outputs.layout != torch.strided or outputs.dim() < 2 or outputs.numel() == 0:
            raise ModelError(
                f"model: returns shape {tuple(outputs.shape)} of {outputs.layout}; copies vote on "
                "dense outputs (B, K)"
            )
        return outputs.flatten(1)


def lie(outputs: Tensor, byzantine: int, attack: Attack) -> Tensor:
    """The outputs (R, B, K) with the last ``byzantine`` copies replaced by lies.

    Liars know what the honest copies say, and agree among themselves:

    - ``far``: enormous values for every output (a stuck line);
    - ``flip``: the honest average with its sign changed, ten times over;
    - ``rival``: the honest average with the best class and the runner-up exchanged (plausible);
    - ``little``: the honest average minus 1.5 honest standard deviations for the best class and
      plus as many for the others (hidden in the noise; Baruch et al., NeurIPS 2019).
    """
    one_of("attack", attack, ATTACKS)
    honest = outputs[: len(outputs) - byzantine]
    if byzantine == 0 or len(honest) == 0:
        return outputs
    mean = honest.mean(0)
    if attack == "far":
        said = torch.full_like(mean, 1e6)
        said[:, ::2] = -1e6
    elif attack == "flip":
        said = -10 * mean
    else:
        top = mean.topk(min(2, mean.shape[1]), dim=1).indices
        best, rival = top[:, :1], top[:, -1:]
        if attack == "rival":
            said = mean.clone()
            said.scatter_(1, best, mean.gather(1, rival))
            said.scatter_(1, rival, mean.gather(1, best))
        else:
            direction = torch.ones_like(mean).scatter_(1, best, -1.0)
            said = mean + 1.5 * direction * honest.std(0, correction=0)
    return torch.cat([honest, said.expand(byzantine, -1, -1)])


@dataclass(frozen=True)
class ReplicaPlan:
    """How many replicas reach a target, by the exact law and by the paper's rule.

    Attributes:
        target: failure probability asked for.
        delta_upper, delta_lower: P(Delta >= eps) and P(Delta <= -eps) of one replica.
        count: the smallest odd number with ``failure <= target``; None if no number helps.
        failure: of the median of ``count`` replicas (a union over outputs; exact for one).
        published: the rule 2 log(1/target) / log 3 of the paper's code.
        published_failure: what that many replicas fail with, in truth.
        warning: what is wrong with the rule here; None where it is safe.
    """

    target: float
    delta_upper: float
    delta_lower: float
    count: int | None
    failure: float | None
    published: int
    published_failure: float
    warning: str | None


def plan_replicas(
    target: float, delta_upper: float, delta_lower: float = 0.0, outputs: int = 1
) -> ReplicaPlan:
    """The exact replica count beside the paper's.

    Raises:
        ArgumentError: a probability outside its range.
    """
    try:
        outputs = whole("outputs", outputs, 1)
        published = published_replicas(target)
        published_failure = median_failure(published, delta_upper, delta_lower, outputs)
    except TheoryError as error:
        raise ArgumentError(str(error)) from error
    count: int | None
    try:
        count = replicas_needed(target, delta_upper, delta_lower, outputs)
    except TheoryError:
        count = None
    failure = None if count is None else median_failure(count, delta_upper, delta_lower, outputs)
    single = max(delta_upper, delta_lower)
    warning = None
    if published_failure > target:
        warning = (
            f"the published rule's {published} replicas fail with probability "
            f"{published_failure:.2g}, not {target:.2g}: it holds only where one replica fails "
            f"with probability <= {PUBLISHED_LIMIT:.4f} (here {single:.3g})"
        )
    elif count is not None and published > count:
        warning = f"the published rule asks for {published} replicas where {count} do"
    return ReplicaPlan(
        target, delta_upper, delta_lower, count, failure, published, published_failure, warning
    )


@dataclass(frozen=True)
class VoteFailure:
    """P(|vote - F(0)| >= epsilon for some output), measured, with Clopper-Pearson intervals.

    Attributes:
        per_input: (B,) values.
        pooled: average over inputs (), whose interval allows for inputs that share the copies.
        trials: number of groups of copies.
    """

    per_input: Interval
    pooled: Interval
    trials: int


def simulate_vote(
    space: FaultSpace,
    count: int,
    epsilon: float,
    voter: str | Voter = "median",
    trials: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> VoteFailure:
    """Builds ``trials`` groups of ``count`` faulty copies and lets each vote."""
    instance("space", space, FaultSpace, "a FaultSpace")
    count = whole("count", count, 1, MOST_COPIES)
    vote = make_voter(voter, count)
    trials = sample_count("trials", trials, 2)
    epsilon = number("epsilon", epsilon, "a positive number in the units of the outputs", above=0)
    confidence = fraction("confidence", confidence)
    source = _samples(space, check_seed(seed))
    shares, failed = [], np.zeros(space.B)
    chunk = max(1, _CHUNK // (count * space.B * space.K))
    for start in range(0, trials, chunk):
        some = min(chunk, trials - start)
        points = source(some * count)
        outputs = torch.from_numpy(space.outputs(points)).reshape(some, count, space.B, space.K)
        votes = vote(outputs.transpose(0, 1).reshape(count, some * space.B, space.K))
        moved = np.abs(votes.reshape(some, space.B, space.K).numpy() - space.clean())
        fails = (moved >= epsilon).any(2)
        failed += fails.sum(0)
        shares.append(fails.mean(1))
    alpha = 1 - confidence
    share = np.concatenate(shares)
    pooled = clustered_proportion_interval(share.mean(), share.var(ddof=1), trials, space.B, alpha)
    return VoteFailure(proportion_interval(failed, trials, alpha), pooled, trials)


_CHUNK = 2**21  # outputs held at once


def _samples(space: FaultSpace, seed: int) -> Callable[[int], Points]:
    """A function that draws the next ``count`` points of a seed's stream."""
    left: list[Points] = []
    block = 0

    def draw(count: int) -> Points:
        nonlocal block
        while sum(part.count for part in left) < count:
            left.append(sample_block(space.placements, seed, block))
            block += 1
        taken: list[Points] = []
        while (missing := count - sum(part.count for part in taken)) > 0:
            first = left.pop(0)
            taken.append(first.part(0, min(missing, first.count)))
            if first.count > missing:
                left.insert(0, first.part(missing, first.count))
        return join(taken)

    return draw


@dataclass(frozen=True)
class ByzantineTable:
    """How often each voter errs, by the number of bad copies and their attack.

    Attributes:
        count: number of copies.
        bad: numbers of bad copies tried.
        voters: names.
        wrong: (voters, bad, attacks) the share of votes that pick another class than the clean
            network does.
        attacks: names.
    """

    count: int
    bad: tuple[int, ...]
    voters: tuple[str, ...]
    attacks: tuple[str, ...]
    wrong: Floats

    @property
    def worst(self) -> Floats:
        """(voters, bad): under the attack that hurts the voter most."""
        found: Floats = self.wrong.max(2)
        return found

    def holds(self, tolerance: float = 0.05) -> dict[str, int]:
        """For each voter, up to how many bad copies at most this share of votes is wrong."""
        found = {}
        for name, row in zip(self.voters, self.worst, strict=True):
            fine = row <= tolerance
            found[name] = -1 if not fine[0] else self.bad[int(np.argmin([*fine, False])) - 1]
        return found

    def text(self) -> str:
        """The table, as plain text."""
        lines = [
            f"Votes for another class than the clean network's, worst of {len(self.attacks)} "
            f"attacks, by bad copies of {self.count}:",
            f"{'voter':18}" + "".join(f"{b:>8}" for b in self.bad),
        ]
        for name, row in zip(self.voters, self.worst, strict=True):
            lines.append(f"{name:18}" + "".join(f"{value:>8.1%}" for value in row))
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary for each voter, number of bad copies and attack."""
        return [
            {"voter": v, "copies": self.count, "bad": b, "attack": a, "wrong": self.wrong[i, j, k]}
            for i, v in enumerate(self.voters)
            for j, b in enumerate(self.bad)
            for k, a in enumerate(self.attacks)
        ]

    def plot(self, path: str | Path) -> None:
        """Writes the picture; its ending says what kind of picture.

        Raises:
            ArgumentError: no path, or an ending that matplotlib does not know.
            FileError: the file cannot be written.
        """
        figure = needed("matplotlib.figure", "a plot").Figure(
            figsize=(6.5, 0.5 * len(self.voters) + 1.6), layout="constrained"
        )
        axes = figure.subplots()
        image = axes.imshow(self.worst, cmap="RdYlGn_r", vmin=0, vmax=1, aspect="auto")
        axes.set_yticks(range(len(self.voters)), self.voters)
        axes.set_xticks(range(len(self.bad)), [str(b) for b in self.bad])
        axes.set_xlabel(f"bad copies of {self.count}")
        axes.set_title("wrong votes, worst attack", fontsize=10)
        for i, row in enumerate(self.worst):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=8)
        figure.colorbar(image, ax=axes)
        write_picture("path", path, figure)


def byzantine_table(
    model: nn.Module,
    inputs: Tensor,
    count: int = 11,
    *,
    faults: Faults | None = None,
    sites: str = "hidden",
    voters: Sequence[str] = VOTERS,
    attacks: Sequence[Attack] = ATTACKS,
    trials: int = 20,
    seed: int = 0,
) -> ByzantineTable:
    """Tries every voter with 0 to R - 1 over 2, and a few more, Byzantine copies.

    Every voter knows the number of bad copies where it can bear that many; else it allows for as
    many as it can.

    Args:
        model, inputs: a classifier and (B, ...) examples.
        count: copies R.
        faults: that honest copies suffer besides; None for none.
        trials: draws of the honest copies' faults.

    Raises:
        ArgumentError: an argument makes no sense.
        ModelError: the model cannot be analysed, or fails on the inputs.
    """
    count = whole("count", count, 1, MOST_COPIES)
    trials = sample_count("trials", trials, 1)
    seed = check_seed(seed)
    check_model(model)
    for argument, names in (("voters", voters), ("attacks", attacks)):
        if isinstance(names, str) or not isinstance(names, Sequence) or not names:
            raise ArgumentError(f"{argument}={names!r}; give a list of names")
    bad = tuple(range(min(count, (count + 1) // 2 + 2)))
    space = None if faults is None else FaultSpace(model, inputs, faults, sites)
    clean = _clean(model, inputs)
    trials = 1 if space is None else trials
    wrong = np.zeros((len(voters), len(bad), len(attacks)))
    draw = None if space is None else _samples(space, seed)
    for _ in range(trials):
        if space is None or draw is None:
            honest = clean.expand(count, -1, -1)
        else:
            honest = torch.from_numpy(space.outputs(draw(count))).to(clean)
        for j, b in enumerate(bad):
            for k, attack in enumerate(attacks):
                said = lie(honest, b, attack)
                for i, name in enumerate(voters):
                    vote = _voter_knowing(name, count, b)
                    changed = predicted_class(vote(said)) != predicted_class(clean)
                    wrong[i, j, k] += float(changed.float().mean())
    return ByzantineTable(count, bad, tuple(voters), tuple(attacks), wrong / trials)


def _voter_knowing(name: str, count: int, bad: int) -> Voter:
    try:
        return make_voter(name, count, bad)
    except ArgumentError:
        return make_voter(name, count)
