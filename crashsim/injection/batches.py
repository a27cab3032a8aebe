"""How many samples of how many inputs are computed at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.injection.site_changes import RARE_WEIGHTS, is_rare
from crashsim.model.inputs import Inputs
from crashsim.model.sites.site import Site

# Scalars of activations in flight at once: small enough for the cache, large enough to batch.
_BATCH_SCALARS = 2**22
_BATCH_SCALARS_OF_A_GPU = 2**28  # which has no use for few: a gigabyte in single precision

_STEPS_IN_FLIGHT = 3

# Outputs (S b, ...) of points from one number to another; and how many at most at a time.
Run = Callable[[int, int], Tensor]
Started = AbstractContextManager[tuple[Run, int]]
# How to compute points on some inputs.
Strategy = Callable[[Inputs], Started]


def in_batches(
    strategy: Strategy, examples: Inputs, count: int, outputs: int, scalars: int
) -> Floats:
    """(S, B, K) outputs at S points.

    Args:
        strategy: computes them on some of the examples.
        examples: B inputs.
        count: number of points S.
        outputs: number of outputs K.
        scalars: numbers in flight for a sample of one input.
    """
    size = len(examples)
    on_gpu = any(tensor.is_cuda for tensor in examples.tensors)
    most_scalars = _BATCH_SCALARS_OF_A_GPU if on_gpu else _BATCH_SCALARS
    result = np.empty((count, size, outputs))
    batch = min(size, max(1, most_scalars // scalars))
    step = max(1, most_scalars // (scalars * batch))
    for low in range(0, size, batch):
        with strategy(examples.part(low, low + batch)) as (run, most):
            for start in range(0, count, min(step, most)):
                stop = min(start + min(step, most), count)
                out = run(start, stop).reshape(stop - start, -1, outputs)
                result[start:stop, low : low + batch] = out.double().cpu().numpy()
    return result


def scalars_per_sample(
    sites: Sequence[Site], placements: Sequence[Placement], runs_alone: bool
) -> int:
    """Numbers in flight for a sample of one input, struck weights' products included.

    Args:
        sites: all sites of the model.
        placements: the faults.
        runs_alone: whether each sample of each input runs by itself.
    """
    if runs_alone:
        return _BATCH_SCALARS_OF_A_GPU
    values = [site for site in sites if site.kind != "parameter"]
    calls = Counter(site.units or site.name for site in values)
    # Of what runs in many steps, few steps' values are in flight at a time.
    in_flight = (min(1.0, _STEPS_IN_FLIGHT / calls[site.units or site.name]) for site in values)
    activations = int(sum(s.size * share for s, share in zip(values, in_flight, strict=True))) or 1
    return activations + _scalars_of_weights(sites, placements)


def _scalars_of_weights(sites: Sequence[Site], placements: Sequence[Placement]) -> int:
    """The same, where struck weights are added to the layers' outputs."""
    outputs = {site.module: site for site in sites if site.kind == "module"}
    total = 0.0
    for p in placements:
        layer = outputs.get(p.site.module.rpartition(".")[0])
        if p.site.kind == "parameter" and layer is not None and is_rare(p, RARE_WEIGHTS):
            # Each struck weight acts once for every position of the layer's output.
            total += p.size * p.fault.change_probability * layer.size / p.site.shape[0]
    return int(4 * total)
