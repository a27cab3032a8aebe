"""Faults injected while a network trains: the baseline that everyone uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.arguments import check_seed
from crashsim.coordinates.drawing import draw_tensor
from crashsim.coordinates.placement import Faults, Placement
from crashsim.errors import ModelError
from crashsim.faults import check_drawable, faults_of
from crashsim.model import checkpointing
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.training.attached import Attached, Moment
from crashsim.training.striking import StruckCall, check_fits, struck_step, struck_value


@dataclass(frozen=True)
class _Swap:
    """A parameter for whose struck values a module was given.

    Attributes:
        module, name: which has it.
        weight: the parameter.
        call: its faults.
        draws: the state of the generator that they were drawn from.
    """

    module: nn.Module
    name: str
    weight: nn.Parameter
    call: StruckCall
    draws: Tensor


@dataclass(frozen=True)
class _Drawn:
    """Coordinates (B, n) of neurons that act often in a pass.

    Attributes:
        drawn_from: the state of the generator that they were drawn from.
    """

    drawn_from: Tensor
    coordinates: Tensor

    def state(self) -> Tensor:
        return self.drawn_from


def _generator_at(state: Tensor) -> torch.Generator:
    draws = torch.Generator()
    draws.set_state(state)
    return draws


class CrashTraining(Attached):
    """Faults injected while the model trains: the usual baseline (dropout, with any fault).

    Every forward pass in training mode draws new faults: of neurons for each example, of weights
    for the whole batch. A permanent fault of a neuron lasts for the whole pass: drawn once, it is
    the same in all calls and time steps, and inside recurrent layers of torch. In evaluation mode
    the model is clean. Gradients pass spiking neurons by their surrogate.

        with CrashTraining(model, NeuronCrash(p=0.05), sites="hidden"):
            ...  # an ordinary training loop

    Args:
        model, faults, sites: as for ``CrashVariance``; the model trains uncompiled, for in
            compiled code no fault would strike.
        inverse_scaling: divide by the mean factor 1 - p that crashes leave, as dropout does, so
            that values keep their mean. Without it, the network learns to live with the shift.
        seed: of the faults; global random state is never used.
        steps_axis: the axis of the struck values that is time, as of ``FaultSpace``: a neuron is
            then dead in all steps.
    """

    def __init__(
        self,
        model: nn.Module,
        faults: Faults,
        sites: str = "hidden",
        *,
        inverse_scaling: bool = False,
        seed: int = 0,
        steps_axis: StepsAxis | None = None,
    ) -> None:
        self.inverse_scaling = inverse_scaling
        check_drawable(faults_of(faults), "crash training")
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._swapped: list[_Swap] = []
        self._shared: dict[int, _Drawn] = {}
        super().__init__(model, faults, sites, steps_axis)
        if self._is_compiled:
            self.remove()
            raise ModelError(
                "model: compiled already; make CrashTraining from the module that was given to "
                "torch.compile, and train that one"
            )

    def _wanted(self) -> bool:
        return self.model.training

    def _meet_compiler(self) -> None:
        if self.model.training:
            raise ModelError(
                "model: trains under torch.compile, where CrashTraining would strike no fault; "
                "call the module itself, and compile it once it is trained"
            )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        modules = dict(self.model.named_modules())
        self._shared = {}
        for call in self._by_key.values():
            if call.is_parameter:
                owner, _, name = call.site.module.rpartition(".")
                weight = modules[owner]._parameters[name]
                assert weight is not None
                draws = self._draws()
                self._swapped.append(_Swap(modules[owner], name, weight, call, draws.get_state()))
                modules[owner]._parameters[name] = self._struck_weight(weight, call, draws)

    def _end(self, output: Any) -> None:
        self._shared = {}
        while self._swapped:
            swap = self._swapped.pop()
            swap.module._parameters[swap.name] = swap.weight

    def _weights_now(self) -> list[_Swap]:
        return list(self._swapped)

    @contextmanager
    def _with_weights(self, weights: list[_Swap]) -> Iterator[None]:
        found = [swap.module._parameters[swap.name] for swap in weights]
        outer, self._swapped = self._swapped, list(weights)
        try:
            with checkpointing.uncounted():
                for swap in weights:
                    draws = torch.Generator()
                    draws.set_state(swap.draws)
                    struck = self._struck_weight(swap.weight, swap.call, draws)
                    swap.module._parameters[swap.name] = struck  # type: ignore[assignment]
            yield
        finally:
            self._swapped = outer
            for swap, tensor in zip(weights, found, strict=True):
                swap.module._parameters[swap.name] = tensor

    @contextmanager
    def resumed(self, moment: Moment, needed: bool) -> Iterator[None]:
        outer, self._shared = self._shared, {}
        try:
            with super().resumed(moment, needed):
                yield
        finally:
            self._shared = outer

    def _draws(self) -> torch.Generator:
        """Where the next faults are drawn from; again the same where a segment runs again."""
        state = checkpointing.recalled(self, self._generator.get_state)
        if not checkpointing.runs_again(self):
            return self._generator
        return _generator_at(state)

    def _strike(self, value: Tensor, call: StruckCall) -> Tensor:
        return struck_value(value, call, self._coordinates, self.inverse_scaling)

    def _strike_step(self, h: Tensor, direction: int, step: int, call: StruckCall) -> Tensor:
        return struck_step(h, direction, step, call, self._coordinates, self.inverse_scaling)

    def _coordinates(self, placement: Placement, value: Tensor, count: int) -> Tensor:
        """Drawn anew, but for neurons that were struck in this pass before."""
        size = len(value), count
        if placement.acts_once:
            return draw_tensor(placement.fault, size, self._draws())
        known = self._shared.get(placement.start)
        # A segment that runs again may meet them for the first time: it is told the state that
        # they were drawn from, wherever in the pass that was.
        state = checkpointing.recalled(self, known.state if known else self._generator.get_state)
        if known is None:
            again = checkpointing.runs_again(self)
            draws = _generator_at(state) if again else self._generator
            known = _Drawn(state, draw_tensor(placement.fault, size, draws))
            self._shared[placement.start] = known
        check_fits(placement, known.coordinates, value, count)
        return known.coordinates

    def _struck_weight(self, weight: Tensor, call: StruckCall, draws: torch.Generator) -> Tensor:
        def coordinates(placement: Placement, value: Tensor, count: int) -> Tensor:
            return draw_tensor(placement.fault, (len(value), count), draws)

        return struck_value(weight[None], call, coordinates, self.inverse_scaling)[0]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"_shared": {}}
        return {**state, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state.pop("_generator"))
        super().__setstate__({**state, "_generator": generator})
