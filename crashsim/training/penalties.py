"""Regularisers that make a network tolerate faults, several at once, by their strengths.

``CrashVariance`` is the variance of the outputs itself. ``Continuity`` and ``Balance`` push weights
towards the continuous limit of arXiv 1902.01686. ``CrashTraining`` injects faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from crashsim.coordinates.placement import Faults
from crashsim.training.crash_training import CrashTraining
from crashsim.training.crash_variance import CrashVariance
from crashsim.training.weight_penalties import Balance, Continuity, check_strength


@dataclass(frozen=True)
class Strengths:
    """Strengths of ``CrashVariance``, ``Continuity`` and ``Balance``; 0 leaves one out."""

    variance: float = 0.0
    continuity: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("variance", "continuity", "balance"):
            check_strength(getattr(self, name), name)

    @property
    def any(self) -> bool:
        return bool(self.variance or self.continuity or self.balance)


@contextmanager
def attached_penalties(
    model: nn.Module,
    faults: Faults,
    strengths: Strengths,
    sites: str = "hidden",
    *,
    crash_training: bool = False,
    seed: int = 0,
) -> Iterator[list[Callable[[Tensor], Tensor]]]:
    """The penalties of these strengths, for ``train_classifier``; removed at the block's end."""
    penalties: list[Callable[[Tensor], Tensor]] = []
    with ExitStack() as stack:
        if strengths.variance:
            penalty = CrashVariance(model, faults, sites, strengths.variance, seed=seed)
            penalties.append(stack.enter_context(penalty))
        if strengths.continuity:
            penalties.append(Continuity(model, strengths.continuity))
        if strengths.balance:
            penalties.append(Balance(model, strengths.balance))
        if crash_training:
            stack.enter_context(CrashTraining(model, faults, sites, seed=seed))
        yield penalties
