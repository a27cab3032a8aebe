"""How robust a voter is: the (f, kappa) coefficient that its worst votes show, and proven bounds.

A voter R of n copies, f of them bad, is (f, kappa)-robust if for every set S of n - f copies

    |R(x_1, ..., x_n) - mean_S|^2  <=  kappa / |S| * sum over i in S of |x_i - mean_S|^2

(Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing", AISTATS 2023): the
vote is as near to the honest average as the honest copies are to one another. No voter's kappa is
below f / (n - 2 f). What is found here by searching for bad votes is below the voter's kappa, and a
published bound is above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crashsim.arguments import check_seed, whole
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.protection.voters import Voter, make_voter

_CANDIDATES = 512  # votes looked at in each round
_PARENTS = 32  # of them, that the next round starts from
_ROUNDS = 120


@dataclass(frozen=True)
class Robustness:
    """A voter's coefficient kappa: at least ``found``, at most ``bound``.

    Attributes:
        voter: its name.
        copies, f: number of copies, and of bad ones among them.
        least: f / (n - 2 f), which no voter's coefficient goes below.
        found: the largest ratio among the votes that were searched; a proof that kappa is no less.
        bound: a published upper bound on kappa; None where none is known here.
        source: of the bound.
    """

    voter: str
    copies: int
    f: int
    least: float
    found: float
    bound: float | None
    source: str | None


def published_robustness(voter: str, copies: int, f: int) -> tuple[float, str] | None:
    """A proven upper bound on the kappa of a voter and where it is proven; None if none is known.

    The minimum-diameter average moves by at most 2 f / (n - f) times the honest copies' diameter,
    and a squared diameter is at most 2 (n - f) times their mean squared distance from their mean.
    """
    mixing = "Allouah et al., AISTATS 2023, table 1"
    ratio = f / (copies - 2 * f)
    found: dict[str, tuple[float, str]] = {
        "trimmed-mean": (6 * ratio * (1 + ratio), mixing),
        "krum": (6 * (1 + ratio), mixing),
        "geometric-median": (4 * (1 + ratio) ** 2, mixing),
        "median": (4 * (1 + ratio) ** 2, mixing),
        "minimum-diameter": (
            8 * f**2 / (copies - f),
            "Farhadkhani et al., ICML 2022: 2 f / (n - f) diameters",
        ),
    }
    return found.get(voter)


def voter_robustness(
    voter: str | Voter, copies: int, f: int, *, outputs: int = 2, seed: int = 0
) -> Robustness:
    """Searches for the votes in which f of n copies move a voter farthest from the honest average.

    Votes are drawn and changed by chance, round after round, from those with the largest ratio
    (an evolution strategy), so what is found is a lower bound on kappa.

    Args:
        voter: a name of ``crashsim.protection.voters``, or a function from (R, B, K) to (B, K).
        copies: n.
        f: bad copies, from 1 to less than half.
        outputs: K of the votes tried.
        seed: of the search.

    Raises:
        ArgumentError: an f that the voter cannot bear, or that is half of the copies or more.
    """
    copies = whole("copies", copies, 3)
    if not 1 <= whole("f", f, 1) < copies / 2:
        raise ArgumentError(f"f={f}: of {copies} copies 1 to {(copies - 1) // 2} may be bad")
    vote = make_voter(voter, copies, f)
    rng = generator(check_seed(seed), Stream.VOTES)
    votes = rng.standard_normal((_CANDIDATES, copies, whole("outputs", outputs, 1)))
    best = 0.0
    for _ in range(_ROUNDS):
        ratios = _ratios(vote, votes, f)
        best = max(best, float(ratios.max()))
        parents = votes[np.argsort(-ratios)[:_PARENTS]]
        votes = _changed(rng, parents)
    name = voter if isinstance(voter, str) else getattr(voter, "__name__", "voter")
    bound = published_robustness(name, copies, f)
    return Robustness(name, copies, f, f / (copies - 2 * f), best, *(bound or (None, None)))


def _changed(rng: np.random.Generator, parents: Floats) -> Floats:
    """The parents, and children of them in which some copies moved by a little or by a lot."""
    count = _CANDIDATES - len(parents)
    children = parents[rng.integers(len(parents), size=count)]
    size = 10.0 ** rng.uniform(-3, 1, (count, 1, 1))
    moved = rng.random((count, children.shape[1], 1)) < rng.uniform(0.1, 1, (count, 1, 1))
    children = children + moved * size * rng.standard_normal(children.shape)
    # A ratio does not know the scale of a vote: keep the honest copies' spread near 1.
    both: Floats = np.concatenate([parents, children])
    scaled: Floats = both / np.maximum(both.std(axis=(1, 2), keepdims=True), 1e-9)
    return scaled


def _ratios(vote: Voter, votes: Floats, f: int) -> Floats:
    """The ratio that each of (C, n, K) votes shows, whose last f copies are bad."""
    honest = votes[:, : votes.shape[1] - f]
    mean = honest.mean(1)
    spread = np.square(honest - mean[:, None]).sum(2).mean(1)
    said: Tensor = vote(torch.from_numpy(votes).transpose(0, 1))
    moved = np.square(said.numpy() - mean).sum(1)
    # Copies that agree to rounding tell nothing of a vote.
    found: Floats = np.where(spread > 1e-12, moved / np.maximum(spread, 1e-12), 0.0)
    found[np.isnan(found)] = 0.0
    return found
