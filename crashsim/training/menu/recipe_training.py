"""The training of ``crashsim train`` as a function that trains any classifier in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from crashsim.files.data import Data
from crashsim.training.classifier import Recipe, train_classifier


@dataclass(frozen=True)
class RecipeTraining:
    """Trains a classifier by a recipe, as ``crashsim train`` does; ``train`` for ``harden``.

    Attributes:
        data: to train on, with classes.
        recipe: how.
    """

    data: Data
    recipe: Recipe

    def __call__(
        self, model: nn.Module, penalty: Callable[[Tensor], Tensor], effort: float = 1.0
    ) -> None:
        """Trains in place; ``effort`` times as many epochs, to the next whole number."""
        epochs = max(1, round(self.recipe.epochs * effort))
        recipe = replace(self.recipe, epochs=epochs)
        train_classifier(model, self.data, recipe, penalties=[penalty])
