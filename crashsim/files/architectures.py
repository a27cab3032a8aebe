"""Architecture specs: ``64-100-50-10:sigmoid`` is a feed-forward network."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from crashsim.arguments import check_seed, instance, nearest
from crashsim.errors import ArgumentError
from crashsim.files.limits import in_units, memory

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "linear": nn.Identity,
}
_DEEPEST = 1000  # layers
_SPEC = re.compile(r"(?P<sizes>\d{1,15}(-\d{1,15})+)(:(?P<activation>.*))?")


@dataclass(frozen=True)
class Architecture:
    """A feed-forward network of fully connected layers.

    Attributes:
        sizes: numbers of inputs, of neurons of each hidden layer, and of outputs.
        activation: of the hidden layers; the outputs are linear.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}:{self.activation}"

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in a state dict of the network."""
        found: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes), start=1):
            found |= {f"linear{i}.weight": (fan_out, fan_in), f"linear{i}.bias": (fan_out,)}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that its weights take."""
        return sum((a + 1) * b for a, b in pairwise(self.sizes)) * torch.float32.itemsize

    def build(self, seed: int = 0) -> nn.Sequential:
        """A network with torch's default initialisation, drawn from ``seed`` alone.

        Raises:
            ArgumentError: the seed makes no sense, or the weights do not fit into memory.
        """
        seed = check_seed(seed)
        if self.nbytes > memory():
            raise ArgumentError(
                f"architecture={str(self)!r}: its weights take {in_units(self.nbytes)}, more than "
                f"the memory there is ({in_units(memory())}); give fewer neurons"
            )
        try:
            return self._drawn(seed)
        except (MemoryError, RuntimeError) as error:  # which torch raises where memory ends
            raise ArgumentError(
                f"architecture={str(self)!r}: its weights take {in_units(self.nbytes)}, more than "
                f"the memory left ({error}); give fewer neurons"
            ) from error

    def _drawn(self, seed: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        pairs = list(pairwise(self.sizes))
        generator = torch.Generator().manual_seed(seed)  # the global one belongs to all threads
        for i, (fan_in, fan_out) in enumerate(pairs, start=1):
            layers[f"linear{i}"] = _linear(fan_in, fan_out, generator)
            if i < len(pairs) and self.activation != "linear":
                layers[f"{self.activation.replace('-', '_')}{i}"] = ACTIVATIONS[self.activation]()
        return nn.Sequential(layers).eval()


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """A layer as ``nn.Linear`` makes it, drawn from a generator."""
    layer = nn.Linear(fan_in, fan_out, device="meta")  # draws nothing
    layer.weight = nn.Parameter(torch.empty(fan_out, fan_in))
    layer.bias = nn.Parameter(torch.empty(fan_out))
    bound = 1 / math.sqrt(fan_in)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def is_architecture(spec: str) -> bool:
    """Whether a string has the form of an architecture spec."""
    return _SPEC.fullmatch(spec) is not None


def parse_architecture(spec: str) -> Architecture:
    """Reads ``inputs-hidden-...-outputs[:activation]``.

    Raises:
        ArgumentError: not of that form, a size of zero, more than 1,000 layers, or an unknown
            activation.
    """
    instance("architecture", spec, str, "one as '64-100-50-10:sigmoid'")
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ArgumentError(
            f"architecture={spec!r}: write sizes and activation as in '64-100-50-10:sigmoid'"
        )
    sizes = tuple(int(size) for size in match["sizes"].split("-"))
    if len(sizes) > _DEEPEST + 1:
        raise ArgumentError(
            f"architecture={spec!r}: {len(sizes) - 1:,} layers; give {_DEEPEST:,} at most"
        )
    if min(sizes) < 1:
        raise ArgumentError(f"architecture={spec!r}: every layer needs at least one neuron")
    activation = "relu" if match["activation"] is None else match["activation"]
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"architecture={spec!r}: activation {activation!r} is not known"
            f"{nearest(activation, ACTIVATIONS)}"
            f"; choose among {', '.join(ACTIVATIONS)}"
        )
    return Architecture(sizes, activation)
