"""Plain training of a classifier, enough to have realistic networks to score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.arguments import MOST_SAMPLES, MOST_STEPS, check_seed, instance, number, whole
from crashsim.errors import ArgumentError, ModelError
from crashsim.files.data import Data, Examples
from crashsim.metrics import predicted_class
from crashsim.model.checks import check_can_be_trained, check_module
from crashsim.model.failures import described
from crashsim.model.global_random import Drawing
from crashsim.model.sites.layer_kinds import ACTIVATION_MODULES
from crashsim.model.twins.twin import apart

Progress = Callable[[int, int], None]
_AT_ONCE = 4096  # examples, so that hidden layers take no more memory than they must


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam on the cross-entropy.

    Attributes:
        epochs: passes through the data.
        learning_rate: of Adam, decayed to zero along a cosine.
        batch: examples in a step.
        weight_decay: of AdamW.
        dropout: probability with which hidden neurons are dropped while training (inverse scaling).
        seed: of the order of examples and the dropout.
    """

    epochs: int = 40
    learning_rate: float = 5e-3
    batch: int = 64
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, 1, MOST_STEPS)
        whole("batch", self.batch, 1, MOST_SAMPLES)
        number("learning_rate", self.learning_rate, "a positive number", above=0)
        number("weight_decay", self.weight_decay, "a number >= 0", least=0)
        number("dropout", self.dropout, "a probability below 1", least=0, below=1)
        check_seed(self.seed)


@torch.inference_mode(False)
def train_classifier(
    model: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    penalties: Sequence[Callable[[Tensor], Tensor]] = (),
) -> float:
    """Trains a model in place; returns the last epoch's mean loss. Global RNG state is kept.

    Args:
        model: (B, ...) to (B, K) logits; left in evaluation mode.
        data: inputs with targets in 0 .. K - 1.
        recipe: how to train.
        progress: called with the epochs done and their number.
        penalties: terms of the loss beside the cross-entropy, each a function of the outputs
            (B, K), such as ``CrashVariance``.

    Raises:
        ArgumentError: the data has no targets, they do not fit the model's outputs, or training
            diverges.
    """
    recipe = Recipe() if recipe is None else recipe
    instance("recipe", recipe, Recipe, "a Recipe")
    targets = check_targets(model, data)
    check_can_be_trained(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("model: has no parameters to train; give one that has")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    draws = _draws(model, data)
    # The global generator belongs to all threads: it is used only where the model itself draws.
    generator = None if draws else torch.Generator().manual_seed(recipe.seed)
    handles = [
        module.register_forward_hook(
            lambda _, __, output: _dropout(output, recipe.dropout, generator)
        )
        for module in model.modules()
        if recipe.dropout and isinstance(module, ACTIVATION_MODULES)
    ]
    loss = torch.zeros(())
    try:
        with torch.random.fork_rng(devices=[], enabled=draws), torch.enable_grad():
            if draws:
                torch.manual_seed(recipe.seed)
            model.train()
            for epoch in range(recipe.epochs):
                total = 0.0
                for chosen in torch.randperm(len(targets), generator=generator).split(recipe.batch):
                    optimizer.zero_grad()
                    outputs = model(data.inputs[chosen])
                    loss = F.cross_entropy(outputs, targets[chosen])
                    for penalty in penalties:
                        loss = loss + penalty(outputs)
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(chosen)
                if not math.isfinite(total):
                    raise ArgumentError(
                        f"learning_rate={recipe.learning_rate!r}: training diverged in epoch "
                        f"{epoch + 1} (the loss is not finite); give a smaller one, or weaker "
                        "penalties"
                    )
                schedule.step()
                if progress:
                    progress(epoch + 1, recipe.epochs)
    finally:
        for handle in handles:
            handle.remove()
        model.eval()
        for parameter in model.parameters():
            parameter.grad = None
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise ArgumentError(
            f"learning_rate={recipe.learning_rate!r}: training diverged (weights are not finite); "
            "give a smaller one, or weaker penalties"
        )
    return total / len(targets)


def _draws(model: nn.Module, data: Data) -> bool:
    """Whether the model draws random numbers of torch's own in training mode."""
    twin = apart(model).train()
    drawing = Drawing(data.inputs.device)
    with torch.no_grad():
        drawing.watch(lambda: twin(data.inputs[:2].clone()))
    return drawing.uses_torch


def _dropout(value: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Dropout with inverse scaling, from a generator; the global one, if there is none."""
    kept = torch.empty(value.shape, dtype=value.dtype).bernoulli_(1 - p, generator=generator)
    return value * (kept / (1 - p)).to(value.device)


def accuracy(model: nn.Module, data: Data | Examples) -> float:
    """Share of examples whose largest output is their class."""
    targets = check_targets(model, data)
    assert isinstance(data.inputs, Tensor)
    with torch.no_grad():
        twin = apart(model)
        predicted = torch.cat([predicted_class(twin(part)) for part in data.inputs.split(_AT_ONCE)])
    return float((predicted == targets).float().mean())


def check_targets(model: nn.Module, data: Data | Examples) -> Tensor:
    """The targets, if the data has any and they fit the model.

    Raises:
        ArgumentError: they are missing, or do not fit the inputs or the model.
        ModelError: the model returns no logits.
    """
    instance("data", data, (Data, Examples), "a crashsim.files.data.Data, as load_data returns")
    if not isinstance(data.inputs, Tensor) or data.inputs.dim() == 0 or len(data.inputs) == 0:
        raise ArgumentError(f"data={data.name!r} holds no examples; give at least one")
    if data.targets is None:
        raise ArgumentError(
            f"data={data.name!r} has no targets; give an .npz file with 'inputs' and 'targets'"
        )
    targets, count = data.targets, len(data.inputs)
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.shape != (count,):
        what = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else targets
        raise ArgumentError(
            f"data={data.name!r}: targets {what} for {count} examples; give an int64 class for each"
        )
    check_module(model)
    try:
        with torch.no_grad():
            found = apart(model)(data.inputs[:2])
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"data={data.name!r}: inputs of shape {tuple(data.inputs.shape[1:])} do not fit the "
            f"model ({described(error)})"
        ) from error
    rows = min(count, 2)
    if (
        not isinstance(found, Tensor)
        or not found.is_floating_point()
        or found.layout != torch.strided
        or found.is_meta
        or found.dim() != 2
        or len(found) != rows
    ):
        what = type(found).__name__
        if isinstance(found, Tensor):
            what = f"{found.dtype} {tuple(found.shape)}"
        raise ModelError(
            f"model: returns {what} for {rows} examples; a classifier returns logits, "
            f"({rows}, classes)"
        )
    outputs = found.shape[1]
    largest = int(data.targets.max())
    if largest >= outputs or int(data.targets.min()) < 0:
        raise ArgumentError(
            f"data={data.name!r}: classes from {int(data.targets.min())} to {largest}, but the "
            f"model has {outputs} outputs; number classes from 0, one output for each"
        )
    return data.targets
