"""Voters: one output from the outputs of several copies, some of which may lie.

A voter takes (R, B, K) outputs of R copies for B inputs and returns (B, K). ``f`` is the number of
bad copies it allows for.

=================  ==============================================================================
voter              what it returns
=================  ==============================================================================
mean               the average; a single liar moves it anywhere
median             the middle of each output; holds while fewer than half lie
trimmed-mean       the average of each output without its f smallest and f largest values
majority           the share of the copies' votes for each class; holds like the median
krum               the copy with the nearest R - f - 2 others (Blanchard et al., NeurIPS 2017)
multi-krum         the average of the R - f copies that Krum ranks first
geometric-median   the point with the least sum of distances to the copies (Weiszfeld 1937)
minimum-diameter   the average of the R - f copies with the least largest distance among them
                   (Rousseeuw 1985; El Mhamdi, Guerraoui and Rouault, ICML 2018)
=================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from crashsim.arguments import instance, is_whole, nearest, whole
from crashsim.errors import ArgumentError
from crashsim.metrics import predicted_class

Voter = Callable[[Tensor], Tensor]

VOTERS = (
    "mean",
    "median",
    "trimmed-mean",
    "majority",
    "krum",
    "multi-krum",
    "geometric-median",
    "minimum-diameter",
)
_WEISZFELD_STEPS = 60
_MOST_SUBSETS = 20_000  # of copies, that the minimum-diameter average looks through


def make_voter(name: str | Voter, copies: int, f: int | None = None) -> Voter:
    """The voter of a name.

    Args:
        name: one of ``VOTERS``, or a function from (R, B, K) to (B, K).
        copies: number of copies R.
        f: bad copies to allow for; by default as many as the median can bear, less than half (and
            for Krum, less than half of R - 2).

    Raises:
        ArgumentError: an unknown name, an f that the voter cannot bear, or too many copies for it.
    """
    if callable(name):
        return name
    instance("voter", name, str, f"one of {', '.join(VOTERS)}, or a function")
    whole("copies", copies, 1)
    krum = name in ("krum", "multi-krum")
    most = max(0, (copies - 3) // 2 if krum else (copies - 1) // 2)
    f = most if f is None else f
    if not is_whole(f) or not 0 <= f <= most:
        raise ArgumentError(
            f"f={f!r}: {name} of {copies} copies allows for 0 to {most} bad ones; use more copies"
        )
    found: dict[str, Voter] = {
        "mean": lambda outputs: outputs.mean(0),
        "median": _median,
        "trimmed-mean": lambda outputs: _trimmed_mean(outputs, f),
        "majority": _majority,
        "krum": lambda outputs: _krum(outputs, f, 1),
        "multi-krum": lambda outputs: _krum(outputs, f, copies - f),
        "geometric-median": _geometric_median,
        "minimum-diameter": lambda outputs: _minimum_diameter(outputs, f),
    }
    if name not in found:
        raise ArgumentError(
            f"voter={name!r} is not known{nearest(name, VOTERS)}"
            f"; choose among {', '.join(VOTERS)}, or give a "
            "function from (R, B, K) to (B, K)"
        )
    if name == "minimum-diameter" and comb(copies, f) > _MOST_SUBSETS:
        raise ArgumentError(
            f"voter='minimum-diameter', copies={copies}, f={f}: {comb(copies, f):,} sets of copies "
            f"are too many to look through (at most {_MOST_SUBSETS:,}); give a smaller f, or take "
            "multi-krum"
        )
    return found[name]


def _median(outputs: Tensor) -> Tensor:
    """The middle value; of an even number, the average of the two middle ones."""
    ordered = outputs.sort(dim=0).values
    r = len(outputs)
    return (ordered[(r - 1) // 2] + ordered[r // 2]) / 2


def _trimmed_mean(outputs: Tensor, f: int) -> Tensor:
    return outputs.sort(dim=0).values[f : len(outputs) - f].mean(0)


def _majority(outputs: Tensor) -> Tensor:
    votes = F.one_hot(predicted_class(outputs), outputs.shape[2])
    return votes.to(outputs.dtype).mean(0)


def _krum(outputs: Tensor, f: int, chosen: int) -> Tensor:
    """The average of the ``chosen`` copies with the smallest sums of squared distances."""
    by_input = outputs.transpose(0, 1)  # (B, R, K)
    distance = (by_input[:, :, None] - by_input[:, None]).square().sum(3)
    near = max(1, len(outputs) - f - 2)
    # Each copy's distance to itself, 0, comes first. Infinite outputs make NaN: farthest of all.
    scores = distance.nan_to_num(nan=torch.inf).sort(dim=2).values[:, :, 1 : near + 1].sum(2)
    best = scores.argsort(dim=1)[:, :chosen]
    picked = by_input.gather(1, best[:, :, None].expand(-1, -1, by_input.shape[2]))
    return picked.mean(1)


def _geometric_median(outputs: Tensor) -> Tensor:
    """Weiszfeld's iteration from the median, in double precision."""
    wide = outputs.double()
    centre = _median(wide)
    for _ in range(_WEISZFELD_STEPS):
        distance = (wide - centre).norm(dim=2, keepdim=True).clamp_min(1e-12)
        weight = 1 / distance
        centre = (wide * weight).sum(0) / weight.sum(0)
    return centre.to(outputs.dtype)


def _minimum_diameter(outputs: Tensor, f: int) -> Tensor:
    """The average of the R - f copies whose largest distance among them is least."""
    by_input = outputs.transpose(0, 1)  # (B, R, K)
    # A copy that says infinity or NaN is far from all.
    distance = torch.cdist(by_input, by_input).nan_to_num(nan=torch.inf)
    chosen = list(combinations(range(len(outputs)), len(outputs) - f))
    diameters = torch.stack([distance[:, rows][:, :, rows].amax((1, 2)) for rows in chosen], 1)
    rows = torch.tensor(chosen, device=outputs.device)[diameters.argmin(1)]  # (B, R - f)
    return by_input.gather(1, rows[:, :, None].expand(-1, -1, by_input.shape[2])).mean(1)
