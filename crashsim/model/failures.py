"""Exceptions of the user's own code, reported as errors of the model."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from crashsim.errors import CrashsimError, ModelError
from crashsim.model.inputs import Inputs


@contextmanager
def explaining_failures(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Within the block, an exception of the model's own code becomes a ModelError."""
    try:
        yield
    except CrashsimError:
        raise
    except (Exception, SystemExit) as error:
        remedy = "give inputs as its forward takes them"
        types = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
        if len(types) > 1:  # while a space computes in one of them
            remedy = f"its parameters are {' and '.join(sorted(types))}: convert it to one type"
        if isinstance(model, torch.fx.GraphModule):
            remedy += ", and export the model with a free batch size (dynamic_shapes)"
        raise ModelError(
            f"inputs: the model fails on {inputs.describe()} ({described(error)}); {remedy}"
        ) from error


def described(error: BaseException) -> str:
    """An exception in one line: its kind, its words, and where in the user's code it arose."""
    words = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, SyntaxError):
        words, where = error.msg, (error.filename, error.lineno)
    else:
        where = _origin(error)
    text = type(error).__name__ + (f": {words}" if words else "")
    return f"{text} (at {where[0]}:{where[1]})" if where[0] else text


def _origin(error: BaseException) -> tuple[str | None, int | None]:
    """The deepest line that belongs neither to crashsim nor to what is installed."""
    paths = sysconfig.get_paths()
    ours = tuple({str(Path(__file__).parents[1]), *(paths[k] for k in ("stdlib", "purelib"))})
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *ours)):
            return frame.filename, frame.lineno
    return None, None
