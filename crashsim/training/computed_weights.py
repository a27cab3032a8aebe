"""Weights that a model computes anew in each pass, which cannot be struck while it trains.

A score runs a twin that holds the weights themselves. While a model trains they follow from other
tensors (weight_norm, pruning, fake quantisation) that the optimiser moves; a fault of such a tensor
would be another fault than that of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from crashsim.coordinates.placement import Faults, Placement
from crashsim.errors import SiteError
from crashsim.faults import Fault
from crashsim.model.inputs import read_inputs
from crashsim.model.multiplied.forward_weights import sources_in_forward
from crashsim.model.twins.held_weights import computed_weights


def check_names(model: nn.Module, faults: Faults, sites: str) -> None:
    """Raises SiteError where faults of weights are to strike weights that hooks compute."""
    given = faults if isinstance(faults, Mapping) else {sites: faults}
    computed = computed_weights(model)
    for pattern, fault in given.items():
        if not isinstance(fault, Fault) or fault.strikes == "neurons":
            continue
        for weight, sources in computed:
            every = pattern == "weights" or (pattern == "hidden" and fault.strikes == "weights")
            asked = fault.strikes == "weights" and fnmatchcase(weight, pattern)
            if every or asked or pattern == weight or pattern in sources:
                raise _refusal(pattern, weight, sources[0])


def check_placements(
    model: nn.Module,
    placements: Sequence[Placement],
    tensors: Mapping[str, Tensor],
    x: Tensor,
    run: Callable[[Tensor, Mapping[str, Tensor]], object],
) -> None:
    """Raises SiteError where a struck parameter is what forward computes a weight from.

    Args:
        model: in evaluation mode; it is hooked for some passes.
        placements: the faults.
        tensors: its parameters and buffers.
        x: (B, ...) its input.
        run: calls it with an input, parameters and buffers.
    """
    struck = {p.site.module: p.site.name for p in placements if p.site.kind == "parameter"}
    if not struck:
        return
    # Of torch's own layers it is known; a pass shows it only once their observers have seen values.
    for path, module in model.named_modules():
        weight = f"{path}.weight".lstrip(".")
        if weight in struck and isinstance(getattr(module, "weight_fake_quant", None), nn.Module):
            raise _refusal(struck[weight], weight, weight)
    found = sources_in_forward(
        model, tensors, read_inputs(x), lambda given, t: run(given.tensors[0], t), set(struck)
    )
    found |= {source: w for w, sources in computed_weights(model) for source in sources}
    for source, name in struck.items():
        if source in found:
            raise _refusal(name, found[source], source)


def _refusal(asked: str, weight: str, source: str) -> SiteError:
    return SiteError(
        f"sites={asked!r}: the model computes the weight {weight!r} from {source!r} in each pass; "
        "while it trains, faults strike weights that are parameters alone: give sites of neurons, "
        "train the plain layer (parametrize.remove_parametrizations, prune.remove), or score the "
        "trained model, where they strike what is multiplied"
    )
