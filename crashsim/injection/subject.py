"""What is analysed: the user's model, inputs and faults, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from crashsim.coordinates.placement import Faults, Placement, check_strength, patterns_of, place
from crashsim.coordinates.stored_faults import check_range
from crashsim.errors import ArgumentError, SiteError
from crashsim.faults import Fault, faults_by_site
from crashsim.injection.batches import scalars_per_sample
from crashsim.metrics import Targets
from crashsim.model.checks import check_model, dtype_of, unwrapped
from crashsim.model.inputs import BatchAxis, Inputs, ModelInputs, can_compute, read_inputs
from crashsim.model.isolated_model import IsolatedModel, device_of
from crashsim.model.loss import Given
from crashsim.model.multiplied.weight_names import check_names, told_left
from crashsim.model.number_types import autocast_type
from crashsim.model.sites.time_axis import StepsAxis, with_steps_axis
from crashsim.model.twins.held_tensors import numbers_named
from crashsim.model.twins.protected_module import ResidualLaw, residual_of
from crashsim.model.twins.resetting import Reset
from crashsim.noticing import notice


@dataclass(frozen=True)
class Subject:
    """A model, its inputs, and the faults at their sites.

    Attributes:
        model: the model without faults, apart from the user's.
        examples: the inputs, where the model is and in its type.
        placements: the faults at their sites, in the order of their coordinates.
        strikes_hidden: whether all neurons are struck, by the name ``hidden``.
        scalars: numbers in flight for a sample of one input.
    """

    model: IsolatedModel
    examples: Inputs
    placements: Sequence[Placement]
    strikes_hidden: bool
    scalars: int


def read_subject(
    model: nn.Module,
    inputs: ModelInputs | Inputs,
    faults: Faults,
    sites: str,
    dtype: torch.dtype | None,
    readout: str | int | None,
    reset: Reset | None,
    batch_axis: BatchAxis,
    steps_axis: StepsAxis | None,
    loss: Given = None,
    targets: Targets = None,
) -> Subject:
    """Reads what a ``FaultSpace`` is made of; its arguments and errors are the space's.

    Args:
        targets: where a loss is read in place of the outputs, what it compares them with.
    """
    residual = residual_of(model)
    model = unwrapped(model)
    check_model(model)
    by_site = faults_by_site(faults, _name_of(sites))
    examples, dtype = _examples(model, inputs, dtype, batch_axis, targets)
    isolated = IsolatedModel(model, examples, dtype, readout, reset, by_site, loss)
    if steps_axis is not None:
        isolated.sites = with_steps_axis(isolated.sites, steps_axis, examples)
    if any(fault.is_of_features for fault in by_site.values()):
        isolated.find_features(examples)
    placements = _placed(isolated, faults, sites, by_site, residual)
    check_strength(placements, dtype)
    check_range(((p.fault, p.site) for p in placements), isolated.tensors)
    unread = isolated.unread([p.site for p in placements], examples)
    for told in (unread, told_left(patterns_of(faults, sites), isolated.held)):
        if told:
            notice(told, stacklevel=5)
    scalars = scalars_per_sample(isolated.sites, isolated.runs_alone)
    return Subject(isolated, examples, placements, "hidden" in by_site, scalars)


def _name_of(sites: str) -> str:
    if not isinstance(sites, str):
        raise ArgumentError(
            f"sites={sites!r}: give a name or glob; for several, map each name "
            "to its fault in faults"
        )
    return sites


def _examples(
    model: nn.Module,
    inputs: ModelInputs | Inputs,
    dtype: torch.dtype | None,
    batch_axis: BatchAxis,
    targets: Targets,
) -> tuple[Inputs, torch.dtype]:
    """The inputs where the model is, and the type to compute in."""
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point and can_compute(dtype)
    if dtype is not None and not known:
        raise ArgumentError(f"dtype={dtype!r}; give a type of floating point (torch.float64)")
    dtype, device = dtype or dtype_of(model), device_of(model)
    if other := autocast_type(device):
        notice(
            f"torch.autocast: is on ({other}), but the model is scored in {dtype}; to "
            f"score it as {other} computes it, give it converted (model.to({other}))",
            stacklevel=6,
        )
    examples = read_inputs(inputs, batch_axis)
    examples = examples if targets is None else examples.with_targets(targets)
    return examples.to(device, dtype), dtype


def _placed(
    isolated: IsolatedModel,
    faults: Faults,
    sites: str,
    by_site: Mapping[str, Fault],
    residual: ResidualLaw | None,
) -> list[Placement]:
    """The faults at their sites; SiteError where some of them would not reach what they strike."""
    check_names(patterns_of(faults, sites), isolated.held, isolated.sites)
    try:
        placements = place(faults, sites, isolated.sites, dtype_of(isolated.original), residual)
    except SiteError as error:
        why = _why_none(isolated.looped, numbers_named(isolated.original, by_site))
        raise SiteError(f"{error}{why}") from error
    _check_feedback(placements, isolated.fed_back)
    _check_closed(placements, isolated.closed, "hidden" in by_site)
    if isolated.missed and "hidden" in by_site:
        if len(by_site) == 1 and any(p.site.is_affine for p in placements):
            raise SiteError(f"{_missed(isolated.missed)}; nothing else there is a neuron's output")
        notice(_missed(isolated.missed), stacklevel=6)
    return placements


def _check_feedback(placements: Sequence[Placement], fed_back: Sequence[str]) -> None:
    """Raises SiteError for spikes that are fed back where no fault of them reaches."""
    for p in placements:
        if p.site.kind != "parameter" and p.site.module in fed_back:
            raise SiteError(
                f"sites: {p.site.module!r} runs through all steps in one call and feeds its spikes "
                "back inside it, where a fault of what it returns does not reach: a dead neuron "
                "would still drive its own layer. Call it step by step (a cell in a loop), or "
                "strike other sites"
            )


def _check_closed(placements: Sequence[Placement], closed: Sequence[str], hidden: bool) -> None:
    """Raises SiteError for units of recurrent layers whose single steps no fault reaches.

    Args:
        placements: what is struck.
        closed: those layers.
        hidden: whether all neurons are to be struck, those of these layers among them.
    """
    of_neurons = [p for p in placements if p.site.kind != "parameter"]
    struck = {p.site.module for p in of_neurons}
    for path in closed:
        if path in struck or (hidden and of_neurons):
            raise SiteError(
                f"sites: {path!r} is a recurrent layer that reads a packed sequence or several "
                "sequences of an example, or is quantised: no fault reaches its single steps, so "
                "that a dead unit would still drive its own layer. Give it padded sequences "
                "(B, T, F), or strike other sites, or weights"
            )


def _why_none(looped: Sequence[str], numbers: Sequence[str]) -> str:
    """Why values that run for each example by itself are no sites, in an error's words.

    Or why what was named is none: it is a plain number.
    """
    if numbers:
        return (
            f"; {numbers[0]!r} is a plain number in an attribute, which no fault reaches: make it "
            "a tensor (a buffer)"
        )
    if not looped:
        return ""
    names = ", ".join(repr(name) for name in looped[:3])
    return (
        f"; {names} run in a loop over the examples, one after the other, so that their values "
        "have no batch axis: give a model that takes all examples of a batch together"
    )


def _missed(pairs: Sequence[tuple[str, str]]) -> str:
    """A warning of activations that are computed in line and cannot be struck."""
    shown = " and ".join(f"between {a!r} and {b!r}" for a, b in pairs[:3])
    return (
        f"hidden: {shown}, the model computes an activation in line and mixes its values before "
        "they are read (it pools them, say), so that its neurons are not struck; put it into a "
        "module of its own"
    )
