"""A model of one's own to keep, with faults in it: struck weights and struck neurons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.injection.faulty_model import FaultyModel, strike_step, strike_value
from crashsim.model.inputs import read_inputs
from crashsim.model.sites.site import perturbing
from crashsim.model.twins.twin import twin_of


@torch.inference_mode(False)
def faulty_copy(faulty: FaultyModel, e: Tensor, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with its own memory and these faults.

    Where they strike weights alone, it is of the model's class; else a ``StruckModel`` around such
    a copy.

    Args:
        faulty: the model and where faults are placed.
        e: (N,) the point.
        weights: the struck parameters by name.
    """
    own = {name: tensor.detach().clone() for name, tensor in faulty.model.tensors.items()}
    own |= {name: tensor.to(own[name]) for name, tensor in weights.items()}
    copy = twin_of(faulty.model.original, own)
    for name, parameter in faulty.model.original.named_parameters():
        module, _, own_name = name.rpartition(".")
        mine = getattr(copy.get_submodule(module), own_name)
        if isinstance(mine, nn.Parameter):  # a quantised layer's weight is none
            mine.requires_grad_(parameter.requires_grad)
    if not any(e[p.start : p.stop].any() for p in faulty.placements if p.site.kind != "parameter"):
        return copy
    return StruckModel(copy, faulty, e)


class StruckModel(nn.Module):
    """A model whose neurons or inputs fail in every forward pass, always the same ones.

    One thread at a time may run it.

    Args:
        model: with its own memory.
        faulty: where faults are placed.
        e: (N,) the point.

    Attributes:
        model: the model itself, without the faults of neurons.
    """

    def __init__(self, model: nn.Module, faulty: FaultyModel, e: Tensor) -> None:
        super().__init__()
        self.model = model
        self._struck = {
            site: [(p, e[p.start : p.stop][None, None].clone()) for p in placed]
            for site, placed in faulty.struck.items()
        }
        self.train(model.training)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        given = read_inputs(arguments or keywords)
        tensors, actions, inside = given, {}, {}
        for site, placed in self._struck.items():
            places = [p for p, _ in placed]
            coordinates = [e.to(given.tensors[0].device) for _, e in placed]
            act = partial(strike_value, places, coordinates, len(given), site)
            if site.kind == "input":
                index = given.site_names.index(site.module)
                tensors = tensors.with_tensor(index, act(tensors.tensors[index]))
            elif site.is_inside:
                units = [p.by_unit(e) for p, e in zip(places, coordinates, strict=True)]
                inside[site] = partial(strike_step, places, units, 1)
            else:
                actions[site] = act
        with perturbing(self.model, actions, inside):
            if tensors is given:  # with the graph that the caller's tensors may have
                return self.model(*arguments, **keywords)
            positional, named = tensors.of(tensors.tensors)
            return self.model(*positional, **({**keywords, **named} if arguments else named))
