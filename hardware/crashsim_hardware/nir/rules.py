"""The rules of a node that NIR has no word for, as words in its metadata.

A graph that crashsim wrote from a chip of stepped neurons has in each spiking node's metadata
`crashsim_rules`: its reset (subtract or zero), then those of late, strict, many and bounded that
hold, then where its membranes start (zero, v_reset or v_leak) as starts:...
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .conventions import Convention, Reset
from .transforms import plain

__all__ = ["RULES", "rules_of", "rules_text"]

RULES = "crashsim_rules"
_FLAGS = ("late", "strict", "many")


def rules_text(neuron: SteppedNeuron, name: str) -> str:
    """The rules of a neuron in words. Raises HardwareError for a start that has none."""
    words = [neuron.reset, *(flag for flag in _FLAGS if getattr(neuron, flag))]
    if neuron.bound is not None:
        if not (neuron.bound == -1.0).all():
            raise HardwareError(f"layer {name!r}: membranes bounded elsewhere than at -threshold")
        words.append("bounded")
    origin = np.zeros_like(neuron.leak) if neuron.origin is None else neuron.origin
    safe = np.where(neuron.leak > 0.0, neuron.leak, 1.0)
    places = {
        "zero": np.zeros_like(neuron.leak),
        "v_reset": np.zeros_like(neuron.leak) if neuron.floor is None else neuron.floor,
        "v_leak": neuron.rest / safe,
    }
    found = [place for place, value in places.items() if np.allclose(origin, value, 1e-12, 1e-15)]
    if not found:
        raise HardwareError(
            f"layer {name!r}: its membranes start neither at 0, nor at their reset or rest"
        )
    return " ".join([*words, f"starts:{found[0]}"])


def rules_of(node: Any, convention: Convention) -> tuple[Convention, Reset] | None:
    """The convention and the reset that a node's metadata tell; None where they tell none."""
    metadata = getattr(node, "metadata", None) or {}
    text = plain(metadata.get(RULES, "")) if isinstance(metadata, dict) else ""
    words = text.split() if isinstance(text, str) else []
    if not words or words[0] not in ("subtract", "zero"):
        return None
    start = next((word.partition(":")[2] for word in words if word.startswith("starts:")), "zero")
    if start not in ("zero", "v_reset", "v_leak"):
        raise HardwareError(f"{RULES}: membranes cannot start at {start!r:.80}")
    rules: dict[str, Any] = {flag: flag in words for flag in _FLAGS}
    rules |= {"bounded": "bounded" in words, "starts": start, "zero_at_once": False}
    told = replace(convention, **rules)
    reset: Reset = "subtract" if words[0] == "subtract" else "zero"
    return told, reset
