"""Ways to make a network tolerate faults: what is done while it trains, and to what was trained.

A way of your own is a subclass of ``Way``: ``training`` for what happens while the model trains,
``prepared`` for what is made of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from crashsim.arguments import MOST_COPIES, number, shown, whole
from crashsim.errors import ArgumentError
from crashsim.faults import Fault, Rates, counted
from crashsim.model.inputs import Inputs
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.protection.schemes import Cost
from crashsim.protection.voters import Voter, make_voter
from crashsim.space import FaultSpace
from crashsim.training.crash_training import CrashTraining
from crashsim.training.crash_variance import CrashVariance
from crashsim.training.menu.voting_copies import VotingCopies
from crashsim.training.weight_penalties import check_strength

Penalty = Callable[[Tensor], Tensor]
FaultsBySite = Mapping[str, Fault]


@dataclass(frozen=True)
class Struck:
    """What is attached to a model while it trains.

    Attributes:
        penalty: a term of the loss, of the outputs that the model returned; None: there is none.
        sites: that faults have struck so far, by name; None where nothing is to be struck.
    """

    penalty: Penalty | None = None
    sites: Callable[[], list[str]] | None = None


class Way:
    """One way to harden a network: frozen and hashable, named in reports.

    A way that changes how the network trains overrides ``training`` and sets ``trains``; one that
    changes the trained network overrides ``prepared`` (and ``struck``, where its sites have other
    names).
    """

    trains = False
    attaches = False  # faults to the model while it trains, which then takes the batch first

    @property
    def name(self) -> str:
        """What reports call it."""
        return type(self).__name__.lower()

    @contextmanager
    def training(
        self, model: nn.Module, faults: FaultsBySite, seed: int, steps_axis: StepsAxis | None
    ) -> Iterator[Struck]:
        """Around the training of a model: attaches what the way needs, and takes it off again.

        Args:
            model: that trains within the block.
            faults: by site.
            seed: of whatever is drawn.
            steps_axis: the axis of the struck values that is time, as of ``FaultSpace``.
        """
        yield Struck()

    def prepared(self, model: nn.Module, clean: Any) -> nn.Module:
        """What runs in the place of the trained model.

        Args:
            model: trained, in evaluation mode; other ways may use it too, so it is not changed.
            clean: examples that it was trained on, as it is called; None: none were given.
        """
        return model

    def struck(self, faults: FaultsBySite, prepared: nn.Module) -> FaultsBySite:
        """The same faults by the names that their sites have in the prepared model."""
        return faults

    def cost(
        self, before: Callable[[], FaultSpace], prepared: nn.Module, few: Inputs
    ) -> Cost | None:
        """What it adds besides what can be counted in the prepared model's layers and tensors.

        Args:
            before: makes the faults of the model that ``prepared`` was given.
            prepared: what ``prepared`` made of it.
            few: some examples.

        Returns:
            the cost; None where it is not known.
        """
        return Cost()


@dataclass(frozen=True)
class Nothing(Way):
    """Plain training: what everything else is compared with."""

    @property
    def name(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class Penalised(Way):
    """Trains with the variance of the outputs under faults as a penalty (``CrashVariance``).

    Args:
        strength: factor of the penalty in the loss.
        at: as of ``CrashVariance``.
    """

    strength: float = 0.1
    at: Literal["zero", "mean"] = "zero"
    trains = attaches = True

    def __post_init__(self) -> None:
        if check_strength(self.strength) == 0:
            raise ArgumentError("strength=0: is no penalty; give a positive number, or Nothing()")

    @property
    def name(self) -> str:
        return f"penalty {self.strength:g}" + (" at the mean" if self.at == "mean" else "")

    @contextmanager
    def training(
        self, model: nn.Module, faults: FaultsBySite, seed: int, steps_axis: StepsAxis | None
    ) -> Iterator[Struck]:
        with CrashVariance(
            model,
            dict(faults),
            strength=self.strength,
            at=self.at,
            seed=seed,
            steps_axis=steps_axis,
        ) as penalty:
            yield Struck(penalty, lambda: penalty.sites)


@dataclass(frozen=True)
class CrashTrained(Way):
    """Trains with the faults themselves injected in every pass (``CrashTraining``).

    Words are struck as they are stored; gradients pass them as if nothing had happened to the value
    that a flipped bit changed (straight through).

    Args:
        times: the rate of faults while training, as a multiple of that which is asked about.
        inverse_scaling: as of ``CrashTraining``.
    """

    times: float = 1.0
    inverse_scaling: bool = False
    trains = attaches = True

    def __post_init__(self) -> None:
        number("times", self.times, "a positive factor of the rate", above=0)

    @property
    def name(self) -> str:
        return "crash training" + ("" if self.times == 1 else f" at {self.times:g} times the rate")

    @contextmanager
    def training(
        self, model: nn.Module, faults: FaultsBySite, seed: int, steps_axis: StepsAxis | None
    ) -> Iterator[Struck]:
        more = {site: _at_rate(fault, self.times) for site, fault in faults.items()}
        with CrashTraining(
            model, more, inverse_scaling=self.inverse_scaling, seed=seed, steps_axis=steps_axis
        ) as training:
            yield Struck(None, lambda: training.sites)


def _at_rate(fault: Fault, times: float) -> Fault:
    """The fault at a multiple of its rate, probabilities at most at 1/2."""
    if times == 1:
        return fault
    given = getattr(fault, fault.parameter)
    if callable(given):
        raise ArgumentError(
            f"times={times:g}: the rate of {type(fault).__name__} is a function of the site, which "
            "cannot be multiplied; give its faults by site"
        )
    most = 0.5 if fault.parameter == "p" else np.inf
    if isinstance(given, Rates):
        value: Any = Rates.of(fault.parameter, np.minimum(given.array * times, most))
    else:
        value = min(float(given) * times, most)
    changed: dict[str, Any] = {fault.parameter: value}
    return replace(fault, **changed)


@dataclass(frozen=True)
class NarrowWeights(Way):
    """Trains with every weight kept between -limit and limit (Stutz et al., MLSys 2021).

    A narrow range makes the steps of integer words small, and spreads what the network knows over
    many weights. Tensors of one axis (biases, scales of normalisation) are left alone.

    Args:
        limit: the largest magnitude of a weight.
    """

    limit: float = 0.3
    trains = True

    def __post_init__(self) -> None:
        number("limit", self.limit, "a positive number", above=0)

    @property
    def name(self) -> str:
        return f"weights within {self.limit:g}"

    @contextmanager
    def training(
        self, model: nn.Module, faults: FaultsBySite, seed: int, steps_axis: StepsAxis | None
    ) -> Iterator[Struck]:
        def clip(*_: Any) -> None:
            if model.training:
                self._clip(model)

        handle = model.register_forward_pre_hook(clip)
        try:
            yield Struck()
        finally:
            handle.remove()
        self._clip(model)  # what the last step has moved

    def _clip(self, model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dim() > 1:
                    parameter.clamp_(-self.limit, self.limit)


@dataclass(frozen=True)
class Copies(Way):
    """Several copies of the trained network, each struck by itself, that vote on the output.

    Args:
        count: of copies.
        voter: ``"median"``, ``"mean"``, another name of ``crashsim.protection.voters``, or a
            function from (R, B, K) to (B, K).
    """

    count: int = 3
    voter: str | Voter = "median"

    def __post_init__(self) -> None:
        whole("count", self.count, 2, MOST_COPIES)
        make_voter(self.voter, self.count)

    @property
    def name(self) -> str:
        voter = self.voter if isinstance(self.voter, str) else "vote"
        return f"{voter} of {self.count}"

    def prepared(self, model: nn.Module, clean: Any) -> nn.Module:
        if isinstance(model, VotingCopies):
            raise ArgumentError(f"menu: {self.name} of copies that vote; give one number of copies")
        return VotingCopies([deepcopy(model) for _ in range(self.count)], self.voter)

    def struck(self, faults: FaultsBySite, prepared: nn.Module) -> FaultsBySite:
        assert isinstance(prepared, VotingCopies)
        for fault in faults.values():
            if counted(fault):
                raise ArgumentError(
                    f"faults: {type(fault).__name__}(count=...) strikes so many of all copies "
                    "together, and not of each; give p= to compare copies"
                )
        return {each: fault for site, fault in faults.items() for each in prepared.sites_of(site)}


WayOrWays = Way | tuple[Way, ...]


def parts_of(given: WayOrWays) -> tuple[Way, ...]:
    """The ways of an entry of the menu, which is one or several together.

    Raises:
        ArgumentError: something else.
    """
    parts = given if isinstance(given, tuple) else (given,)
    if not parts or not all(isinstance(part, Way) for part in parts):
        raise ArgumentError(
            f"menu: {shown(given)} is no way to harden; give ways such as Penalised(0.1), or "
            "several together as a tuple"
        )
    return parts


def name_of(parts: tuple[Way, ...]) -> str:
    return " + ".join(part.name for part in parts)
