"""Tells which calls of a module are the same neurons once more, and which are other neurons.

A module that runs in every time step, or for every image, is one set of neurons, used again and
again: the weights that feed it are multiplied anew before each call. One ReLU that serves two
layers is two sets of neurons, each behind weights of its own. So each tensor of a forward pass is
followed from the weights that it was last multiplied by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from crashsim.model.nested import leaves

# Functions of an input and the weights that multiply it, with the place of the weights.
WEIGHTED: Mapping[str, int] = {
    "linear": 1,
    "bilinear": 2,
    "embedding": 1,
    "matmul": 1,
    "__matmul__": 1,
    "mm": 1,
    "bmm": 1,
    "mv": 1,
    "addmm": 2,
    "baddbmm": 2,
    "addmv": 2,
    "einsum": 2,
    **{f"conv{way}{n}d": 1 for way in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), 3),
    **{f"{name}_cell": 2 for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
# By the memory of the weights: in which of its uses a tensor was last multiplied by them.
Feeders = Mapping[int, int]


class Following(TorchFunctionMode):
    """Within it, each tensor is followed from the weights that it was last multiplied by.

    What an activation, a sum or a reset makes of it keeps them; another product has its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._uses: Counter[int] = Counter()
        self._feeders: dict[int, Feeders] = {}
        self._alive: list[Tensor] = []  # so that no number of a tensor is used again

    def feeders(self, value: Any) -> Feeders:
        """What a tensor was last multiplied by."""
        return self._feeders.get(id(value), {})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        output = func(*args, **keywords)
        name = getattr(func, "__name__", "").partition(".")[0]
        weights = _weights(name, args, keywords)
        if weights is None:
            found = self._united(_tensors((args, keywords)))
        else:
            self._uses[weights] += 1
            found = {weights: self._uses[weights]}
        if found:
            for tensor in _tensors(output):
                self._feeders[id(tensor)] = found
                self._alive.append(tensor)
        return output

    def _united(self, tensors: Iterator[Tensor]) -> Feeders:
        united: dict[int, int] = {}
        for tensor in tensors:
            for weights, use in self.feeders(tensor).items():
                united[weights] = max(use, united.get(weights, 0))
        return united


def _weights(name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> int | None:
    """The memory of the weights that a function multiplies by; None where it does not."""
    place = WEIGHTED.get(name)
    if place is None:
        return None
    given = args[place] if len(args) > place else keywords.get("weight", keywords.get("other"))
    first = next(_tensors(given), None)
    return None if first is None or not first.numel() else first.data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))


def is_used_again(before: Feeders, now: Feeders) -> bool:
    """Whether the same weights fed two calls, each time in another use of them."""
    return any(use != before[weights] for weights, use in now.items() if weights in before)
