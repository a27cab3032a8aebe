"""A training loop made of a step of the user's, with their batches, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from crashsim.arguments import MOST_SAMPLES, MOST_STEPS, number, shown, whole
from crashsim.errors import ArgumentError

Step = Callable[[nn.Module, Any], Tensor]


def _adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)


@dataclass(frozen=True)
class TrainingLoop:
    """Trains a model by steps; the ``train`` that ``crashsim.harden`` asks for.

        loop = crashsim.TrainingLoop(lambda model, batch: loss(model(batch[0]), batch[1]), loader)

    Penalties are added to the loss of each step, of the outputs that the model returned last.

    Args:
        step: called with the model and a batch; returns the loss, a scalar. It calls the model once
            and changes nothing: gradients and the optimiser are the loop's work.
        batches: what gives the batches of an epoch whenever it is iterated, such as a
            ``DataLoader``; or a tuple of tensors with the examples on their first axis, which are
            shuffled and cut.
        epochs: passes through the batches.
        optimiser: called with the model; returns an optimiser of its parameters. By default Adam
            at 1e-3.
        schedule: called with the optimiser; returns a scheduler, which is stepped after each epoch.
        batch: examples of a batch, where tensors are cut.
    """

    step: Step
    batches: Iterable[Any]
    epochs: int = 10
    optimiser: Callable[[nn.Module], Optimizer] = _adam
    schedule: Callable[[Optimizer], Any] | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("step", "optimiser"):
            if not callable(getattr(self, name)):
                raise ArgumentError(f"{name}={shown(getattr(self, name))}; give a function")
        if isinstance(self.batches, Iterator) or not isinstance(self.batches, Iterable):
            raise ArgumentError(
                f"batches={shown(self.batches)}: is read in every epoch; give a DataLoader, a list "
                "of batches, or a tuple of tensors"
            )
        whole("epochs", self.epochs, 1, MOST_STEPS)
        whole("batch", self.batch, 1, MOST_SAMPLES)

    def __call__(
        self, model: nn.Module, penalty: Callable[[Tensor], Tensor], effort: float = 1.0
    ) -> None:
        """Trains a model in place.

        Args:
            model: in training mode.
            penalty: of the model's outputs, added to the loss.
            effort: times as many epochs, to the next whole number.
        """
        epochs = max(1, round(self.epochs * number("effort", effort, "a factor", above=0)))
        optimiser = self.optimiser(model)
        schedule = None if self.schedule is None else self.schedule(optimiser)
        outputs: list[Any] = []
        handle = model.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            for _ in range(epochs):
                for batch in self._shuffled():
                    outputs.clear()
                    optimiser.zero_grad()
                    loss = self.step(model, batch)
                    if not isinstance(loss, Tensor) or loss.numel() != 1:
                        raise ArgumentError(
                            f"step: returned {shown(loss)}; return the loss, a scalar tensor"
                        )
                    if not outputs:
                        raise ArgumentError("step: called no model; call the one that it is given")
                    (loss + penalty(outputs[-1])).backward()
                    optimiser.step()
                if schedule is not None:
                    schedule.step()
        finally:
            handle.remove()
            outputs.clear()

    def _shuffled(self) -> Iterator[Any]:
        given = self.batches
        if not isinstance(given, tuple) or not all(isinstance(t, Tensor) for t in given):
            yield from given
            return
        for chosen in torch.randperm(len(given[0])).split(self.batch):
            yield tuple(tensor[chosen.to(tensor.device)] for tensor in given)
