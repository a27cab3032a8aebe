"""Penalties on weights that push a network towards the continuous limit of arXiv 1902.01686."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.arguments import number
from crashsim.errors import ArgumentError
from crashsim.model.checks import check_can_be_trained, check_holds_numbers, check_module

_AFFINE = (nn.Linear, nn.modules.conv._ConvNd)


class _WeightPenalty:
    """A penalty on the weights along the neurons of the hidden layers; it needs no outputs.

    Args:
        model: with at least one hidden layer.
        strength: factor of the penalty; the attribute may be changed while training.
        layers: the affine layers in their order, the output layer last; by default every Linear
            and Conv module of the model, in the order of their definition.
    """

    def __init__(
        self, model: nn.Module, strength: float = 1.0, layers: Sequence[nn.Module] | None = None
    ) -> None:
        self.strength = check_strength(strength)
        check_holds_numbers(check_module(model))
        check_can_be_trained(model)
        if layers is None:
            layers = [m for m in model.modules() if isinstance(m, _AFFINE)]
        if not isinstance(layers, Iterable) or not all(isinstance(m, _AFFINE) for m in layers):
            raise ArgumentError(f"layers={layers!r}; give a list of Linear or Conv modules")
        self._layers = list(layers)
        if len(self._layers) < 2:
            raise ArgumentError(
                f"model: {len(self._layers)} affine layers, so no hidden neurons to arrange; "
                "give a model with a hidden layer, or name the layers"
            )

    def __call__(self, output: Tensor | None = None) -> Tensor:
        """The penalty, a scalar; ``output`` is ignored, so that all penalties are called alike."""
        return self.strength * self.measure()

    def measure(self) -> Tensor:
        """The measured quantity, without the strength."""
        raise NotImplementedError

    def _incoming(self) -> list[Tensor]:
        """Weights into each hidden layer, (neurons, inputs)."""
        return [_weight_of(layer).flatten(1) for layer in self._layers[:-1]]


class Continuity(_WeightPenalty):
    """Neighbouring neurons compute similar functions: smoothness along the neuron index.

    Summed over the hidden layers' incoming weights (rows) and, where sizes fit, outgoing weights
    (columns): roughness^2 (mean square step between neighbours over that between unrelated
    neurons) plus the squared relative deviation from a copy smoothed by a Gaussian of ``width``
    neurons. Both are relative to the weights' size, so shrinking the weights does not help.
    Source: the regulariser of arXiv 1902.01686; measures as in ``crashsim_theory.roughness`` and
    ``smoothing_residual``.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1.0,
        layers: Sequence[nn.Module] | None = None,
        *,
        width: float = 3.0,
    ) -> None:
        super().__init__(model, strength, layers)
        self.width = number("width", width, "a positive number of neurons", above=0, most=1e6)

    def measure(self) -> Tensor:
        along = self._incoming()
        for own, following in zip(self._layers, self._layers[1:], strict=False):
            columns = _weight_of(following).transpose(0, 1).flatten(1)
            if len(columns) == len(_weight_of(own)):
                along.append(columns)
        parts = [
            _roughness_squared(w) + _residual_squared(w, self.width) for w in along if len(w) > 2
        ]
        return torch.stack(parts).sum() if parts else _weight_of(self._layers[0]).new_zeros(())


class Balance(_WeightPenalty):
    """No neuron counts for much more than another.

    Mean over the hidden layers of max / min over neurons of (sum of absolute incoming weights)^2,
    that is 1 / q^2 with the balance factor q of arXiv 1902.01686. It is at least 1, and grows
    without bound as a neuron's weights vanish, so it is taken with its logarithm: log(1 / q^2).
    """

    def measure(self) -> Tensor:
        logs = []
        for w in self._incoming():
            sums = w.abs().sum(1).clamp_min(torch.finfo(w.dtype).tiny).log()
            logs.append(2 * (sums.max() - sums.min()))
        return torch.stack(logs).mean()


def _weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _roughness_squared(w: Tensor) -> Tensor:
    """As ``crashsim_theory.roughness``, squared and differentiable; w (neurons, inputs)."""
    n = len(w)
    unrelated = 2 * (w - w.mean(0)).square().mean() * n / (n - 1)
    return (w[1:] - w[:-1]).square().mean() / unrelated.clamp_min(torch.finfo(w.dtype).tiny)


def _residual_squared(w: Tensor, width: float) -> Tensor:
    """As ``crashsim_theory.smoothing_residual``, squared and differentiable."""
    reach = int(4 * width + 0.5)
    steps = torch.arange(-reach, reach + 1, dtype=w.dtype, device=w.device)
    kernel = torch.exp(-0.5 * (steps / width) ** 2)
    padded = F.pad(w.T[:, None], (reach, reach), mode="replicate")
    smooth = F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T
    size = w.square().mean().clamp_min(torch.finfo(w.dtype).tiny)
    return (w - smooth).square().mean() / size


def check_strength(strength: object, argument: str = "strength") -> float:
    """The strength, if it is a finite number >= 0; else ArgumentError."""
    return number(argument, strength, "a finite number >= 0", least=0)
