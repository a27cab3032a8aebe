"""A torch model as a graph of operations."""

from __future__ import annotations

import warnings
from copy import deepcopy

from torch import fx, nn


class UntraceableError(Exception):
    """torch.fx cannot follow the model's forward; the message says why."""


def trace(model: nn.Module) -> tuple[fx.GraphModule, nn.Module]:
    """The graph of a copy of the model, and the copy.

    A copy, because forward may set attributes and buffers, and tracing runs it.

    Raises:
        UntraceableError: the model cannot be copied, or its forward decides on values.
    """
    try:
        with warnings.catch_warnings():  # torch's own, on copying what it exported
            warnings.simplefilter("ignore", FutureWarning)
            copied = deepcopy(model)
        return fx.symbolic_trace(copied), copied
    except Exception as error:  # whatever the user's forward raises on a symbolic input
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UntraceableError(f"torch.fx cannot trace the model ({reason})") from error
