"""What the sums of sampled blocks depend on, in words, by which a store knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from crashsim.campaign.identity import digest
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.streams import REVISION
from crashsim.model.inputs import Inputs
from crashsim.model.labelled import InMemory, Labelled
from crashsim.space import FaultSpace
from crashsim.visible import visible

_SHOWN = 40  # characters of a fault's field
_PIECE = 256  # examples that are read together


@lru_cache(maxsize=1)  # weights are read once in a run; no more models are held than that one
def identity_of(space: FaultSpace) -> Mapping[str, str]:
    """Of the model, the inputs and the faults, and of what computes them.

    Raises:
        ArgumentError: the model, or a fault of the user's, holds what cannot be compared.
    """
    model = space.model
    return {
        "model": f"{type(model).__name__} {digest(model)}",
        "inputs": digest(_read(space.examples)),
        "faults": "; ".join(map(_told, space.placements)),
        "computed in": f"{space.dtype}".removeprefix("torch."),
        "computed on": space.device.type,
        "clean outputs": digest(space.clean()),
        "versions": f"torch {torch.__version__}, numpy {np.__version__}, numbers {REVISION}",
    }


def identity_of_examples(examples: Labelled) -> str:
    """Of labelled examples, each of which is read once."""
    if isinstance(examples, InMemory):
        return digest((examples.inputs.tensors, examples.targets))
    pieces = [digest((x.tensors, y)) for x, y in examples.pieces(_PIECE)]
    return digest(pieces)


def _read(examples: Inputs) -> Any:
    """What decides what is read of examples: what a loss compares the outputs with, too."""
    tensors = examples.tensors
    return tensors if examples.targets is None else (tensors, examples.targets)


def _told(placement: Placement) -> str:
    fault = placement.fault
    given = [
        f"{field.name}={visible(str(getattr(fault, field.name)))[:_SHOWN]}"
        for field in fields(fault)
        if field.repr and _is_given(getattr(fault, field.name), field.default)
    ]
    sites = ", ".join(site.name for site in placement.sites)
    rest: Any = (fault, placement.size, placement.count, placement.tied)
    return f"{type(fault).__name__}({', '.join(given)}) at {sites} {digest(rest)}"


def _is_given(value: Any, default: Any) -> bool:
    return type(value) is not type(default) or isinstance(value, np.ndarray) or value != default
