"""How many samples of how many inputs are computed at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.injection.site_changes import RARE_WEIGHTS, is_rare
from crashsim.model.inputs import Inputs
from crashsim.model.sites.site import Site
from crashsim.working import worked

# Scalars of activations in flight at once: small enough for the cache, large enough to batch.
_BATCH_SCALARS = 2**22
# Where that is not even a few examples, as many as share what a call costs.
_FEW, _SCALARS_OF_FEW = 8, 2**25
_BATCH_SCALARS_OF_A_GPU = 2**28  # which has no use for few: a gigabyte in single precision

_KEPT = 2**25 - 2**16  # bytes: glibc learns from blocks of less than 32 MiB
_STEPS_IN_FLIGHT = 3
# Of a plain pass: what a layer reads and writes, and what goes past it; and where it is struck.
_LAYERS_IN_FLIGHT, _STRUCK_IN_FLIGHT = 4, 8

# Outputs (S b, ...) of points from one number to another; and how many at most at a time.
Run = Callable[[int, int], Tensor]
Started = AbstractContextManager[tuple[Run, int]]


@dataclass(frozen=True)
class Strategy:
    """How to compute points.

    Attributes:
        start: computes them on some inputs.
        scalars: numbers in flight for a sample of one input.
    """

    start: Callable[[Inputs], Started]
    scalars: int


def in_batches(strategy: Strategy, examples: Inputs, count: int, outputs: int) -> Floats:
    """(S, B, K) outputs at S points.

    Args:
        strategy: computes them on some of the examples.
        examples: B inputs.
        count: number of points S.
        outputs: number of outputs K.
    """
    _keep_memory()
    size, rows = len(examples), rows_together(examples, strategy.scalars)
    result = np.empty((count, size, outputs))
    batch = -(-size // -(-size // rows))  # all batches are of about one size
    step = max(1, rows // batch)
    for low in range(0, size, batch):
        with strategy.start(examples.part(low, low + batch)) as (run, most):
            for start in range(0, count, min(step, most)):
                stop = min(start + min(step, most), count)
                out = run(start, stop).reshape(stop - start, -1, outputs)
                result[start:stop, low : low + batch] = out.double().cpu().numpy()
                worked((stop - start) * min(batch, size - low))
    return result


def _keep_memory() -> None:
    """Has the C library keep up to 64 MiB that a batch frees, for the next one.

    By default glibc gives freed memory back as soon as it is twice the largest block that was
    ever freed: each batch would have all its pages mapped anew, which takes as long as its
    arithmetic. A large block that is freed, untouched, moves that limit.
    """
    np.empty(_KEPT, np.uint8)


def rows_together(examples: Inputs, scalars: int) -> int:
    """How many rows, each a sample of one input, are computed at a time.

    Args:
        examples: the inputs.
        scalars: numbers in flight for each.
    """
    if any(tensor.is_cuda for tensor in examples.tensors):
        return max(1, _BATCH_SCALARS_OF_A_GPU // scalars)
    few = min(_FEW, len(examples), _SCALARS_OF_FEW // scalars)
    return max(1, few, _BATCH_SCALARS // scalars)


def scalars_per_sample(sites: Sequence[Site], runs_alone: bool) -> int:
    """Numbers in flight for a sample of one input.

    Args:
        sites: all sites of the model.
        runs_alone: whether each sample of each input runs by itself.
    """
    if runs_alone:
        return _BATCH_SCALARS_OF_A_GPU
    values = [site for site in sites if site.kind != "parameter"]
    calls = Counter(site.units or site.name for site in values)
    # Of what runs in many steps, few steps' values are in flight at a time.
    in_flight = (min(1.0, _STEPS_IN_FLIGHT / calls[site.units or site.name]) for site in values)
    return int(sum(s.size * share for s, share in zip(values, in_flight, strict=True))) or 1


def scalars_at_once(sites: Sequence[Site], struck: bool = False) -> int:
    """The same of a pass, which keeps but few layers' values at a time, where it knows which.

    Args:
        sites: all sites of the model.
        struck: whether values are struck on the way, or followed.
    """
    largest = max((site.size for site in sites if site.kind != "parameter"), default=1)
    return (_STRUCK_IN_FLIGHT if struck else _LAYERS_IN_FLIGHT) * largest


def scalars_of_weights(sites: Sequence[Site], placements: Sequence[Placement]) -> int:
    """The same of struck weights' products, where these are added to the layers' outputs."""
    outputs = {site.module: site for site in sites if site.kind == "module"}
    total = 0.0
    for p in placements:
        layer = outputs.get(p.site.module.rpartition(".")[0])
        if p.site.kind == "parameter" and layer is not None and is_rare(p, RARE_WEIGHTS):
            # Each struck weight acts once for every position of the layer's output.
            total += p.size * p.fault.change_probability * layer.size / p.site.shape[0]
    return int(4 * total)
