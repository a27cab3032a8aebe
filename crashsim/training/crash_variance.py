"""The variance of the outputs under faults as a regulariser, for anyone's training loop.

penalty = CrashVariance(model, NeuronCrash(p=0.05), sites="hidden", strength=1e-2)
for x, y in loader:
    output = model(x)
    loss = criterion(output, y) + penalty(output)
    loss.backward()
    ...
penalty.remove()
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crashsim.arguments import check_seed, one_of, whole
from crashsim.coordinates.drawing import check_rates
from crashsim.coordinates.placement import Faults, Placement
from crashsim.errors import ArgumentError, ModelError, SiteError
from crashsim.faults import Fault, WordFault
from crashsim.model import checkpointing
from crashsim.model.calling import call_with
from crashsim.model.sites.site import Action, Site, StepAction, perturbing
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.twin import twin_of
from crashsim.training.attached import Attached, Moment, devices_of
from crashsim.training.striking import StruckCall, check_fits, struck_step, struck_value
from crashsim.training.weight_penalties import check_strength

_HALF_SCALE = 256.0  # keeps gradients of float16 outputs out of the subnormal numbers


@dataclass
class _Inserted:
    """The coordinates (B, n) inserted in a pass: new ones, but for neurons that act once more.

    Attributes:
        at_mean: at the faults' mean; else at zero.
        found: with the placement of each.
    """

    at_mean: bool = False
    found: list[tuple[Placement, Tensor]] = field(default_factory=list)
    _shared: dict[int, Tensor] = field(default_factory=dict)

    def coordinates(self, placement: Placement, value: Tensor, count: int) -> Tensor:
        e = self._shared.get(placement.start)
        if e is None:
            check_rates(placement.fault, count)
            mean = torch.tensor(
                placement.fault.mean if self.at_mean else 0.0, dtype=torch.float64
            ).to(value)
            e = mean.expand(len(value), count).clone().requires_grad_()
            self.found.append((placement, e))
            if not placement.acts_once:
                self._shared[placement.start] = e
        check_fits(placement, e, value, count)
        return e


@dataclass
class _Pass:
    """One forward pass: its output, and the coordinates inserted in it."""

    output: weakref.ref[Tensor] | None = None
    inserted: _Inserted = field(default_factory=_Inserted)
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    random_state: list[Tensor] = field(default_factory=list)
    autocast: tuple[str, torch.dtype, bool] = ("cpu", torch.bfloat16, False)
    runs_again: bool = False  # for its penalty: this run of it cannot be differentiated twice
    start: nn.Module | None = None  # the model as the pass began, where it keeps a state


class CrashVariance(Attached):
    """The first-order variance of a model's outputs under faults, as a penalty.

    ``strength * mean over the batch of sum over outputs k of sum_i Var(e_i) (dF_k/de_i)^2``: the
    ``taylor`` variance (arXiv 1902.01686, b3) at no faults, or ``mean-point-taylor`` at the mean
    point. For a crash of neuron i, dF/de_i = -h_i dF/dh_i.

    By default the sum over outputs is estimated without bias from one backward pass: with
    independent signs s_bk = +-1, E (d/de sum s_bk F_bk)^2 = sum (dF_bk/de)^2. ``exact`` takes one
    backward pass for each output (for faults of weights: for each output of each example).

    A permanent fault of a neuron has one coordinate for each example, whichever calls of its module
    and time steps it acts in, so that dF/de_i is the sum over all of them; inside ``nn.RNN``,
    ``nn.LSTM`` and ``nn.GRU`` it acts before the feedback. Spiking neurons have no derivative but
    the surrogate gradient that they train with: through it the penalty is not the variance of the
    spiking network, only an estimate of it that training can lower. Measure the gain with
    ``score``.

    The inserted coordinates are zero, so the model's outputs do not change. Forward passes without
    gradients are left alone. With batch normalisation in training mode, the derivative includes an
    example's effect on the others through the batch's statistics.

    Args:
        model: one tensor in, one out, batch first. Give a compiled model as ``torch.compile``
            returned it: its penalty runs the original once more, since compiled graphs cannot be
            differentiated twice; as reentrant gradient checkpointing cannot be.
        faults: one fault (struck at ``sites``), or a mapping from site names or globs to faults.
        sites: name or glob of the sites that a single fault strikes.
        strength: factor of the penalty; the attribute may be changed while training.
        at: ``"zero"``, or ``"mean"`` for the mean point (one more forward pass, with the same
            dropout masks).
        exact: the exact sum over outputs instead of the unbiased estimate.
        draws: random combinations to average over.
        seed: of the signs; global random state is never used.
        steps_axis: the axis of the struck values that is time, as of ``FaultSpace``: a neuron is
            then dead in all steps.

    Attributes:
        variance: the penalty of the last call without its strength, detached.
    """

    def __init__(
        self,
        model: nn.Module,
        faults: Faults,
        sites: str = "hidden",
        strength: float = 1.0,
        *,
        at: Literal["zero", "mean"] = "zero",
        exact: bool = False,
        draws: int = 1,
        seed: int = 0,
        steps_axis: StepsAxis | None = None,
    ) -> None:
        strength = check_strength(strength)
        one_of("at", at, ("zero", "mean"))
        self.strength, self.at, self.exact = strength, at, exact
        self.draws = whole("draws", draws, 1, 10_000)
        self.variance = torch.zeros(())
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._passes: list[_Pass] = []
        self._current = _Pass()
        super().__init__(model, faults, sites, steps_axis)

    def __call__(self, output: Tensor) -> Tensor:
        """The penalty, a scalar to add to the loss.

        Args:
            output: (B, ...) what ``model(x)`` returned. Without compilation and at ``"zero"``,
                anything computed from it for each example will do, such as the losses
                ``cross_entropy(model(x), y, reduction="none")``: their variance is penalised.

        Raises:
            ArgumentError: the output has no batch axis, or stems from no pass that was seen.
        """
        if not isinstance(output, Tensor) or output.dim() == 0 or not output.is_floating_point():
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else repr(output)
            raise ArgumentError(
                f"output: {what} is not a batch of outputs; give what model(x) returned, or the "
                "loss of each example (reduction='none')"
            )
        if torch.is_inference_mode_enabled() or output.is_inference():
            raise ArgumentError(
                "output: was computed in torch.inference_mode, which keeps nothing for "
                "derivatives; call the model and the penalty outside of it"
            )
        if not self._handles:
            raise ArgumentError("penalty: was removed from its model; create it anew")
        if self.strength == 0:
            return output.new_zeros(())
        seen = self._pass_of(output)
        if seen.runs_again:
            output, coordinates = self._replay(seen)
            weights: dict[str, StruckCall] = {}
        else:
            coordinates, weights = seen.inserted.found, self._struck_weights()
        variance = self._sum_of_squares(output.reshape(len(output), -1), coordinates, weights)
        self.variance = variance.detach()
        return self.strength * variance

    def _check(self, placements: list[Placement]) -> None:
        for placement in placements:
            fault = placement.fault
            if isinstance(fault, WordFault) and not fault.adds_up:
                raise SiteError(
                    f"sites={placement.site.name!r}: {type(fault).__name__} strikes bits whose "
                    "changes of a number do not add up (of an exponent, say), so that outputs have "
                    "no derivative by them, and this penalty no meaning; give bits='mantissa', an "
                    "integer format, or CrashTraining, which strikes them while training"
                )

    # Recording.

    @property
    def _replays(self) -> bool:
        return self.at == "mean" or self._is_compiled

    def _wanted(self) -> bool:
        return checkpointing.has_gradient() and self.strength != 0

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._current = current = _Pass(arguments=args, keywords=kwargs)
        if checkpointing.runs_again(self):
            return  # nobody will ask for its penalty
        current.runs_again = self._replays or checkpointing.is_reentrant()
        kind = next((p.device.type for p in self._original.parameters()), "cpu")
        enabled = torch.is_autocast_enabled(kind)
        current.autocast = kind, torch.get_autocast_dtype(kind), enabled
        if current.runs_again and self._keeps_state:
            current.start = twin_of(self._original)
        if self._original.training:
            current.random_state = _random_state(self._original)
        # Passes whose output is gone can no longer be asked about, but for the last one, whose
        # losses may be alive while its output is not.
        alive = [p for p in self._passes if p.output is not None and p.output() is not None]
        self._passes = [*alive, current]

    def _end(self, output: Any) -> None:
        current, self._current = self._current, _Pass()
        if isinstance(output, Tensor):
            current.output = weakref.ref(output)
        elif current in self._passes:
            self._passes.remove(current)
        if not current.runs_again:
            current.arguments, current.keywords, current.random_state = (), {}, []
            current.start = None

    def _strike(self, value: Tensor, call: StruckCall) -> Tensor:
        if self._replays or checkpointing.is_reentrant():
            return value
        return struck_value(value, call, self._current.inserted.coordinates)

    def _strike_step(self, h: Tensor, direction: int, step: int, call: StruckCall) -> Tensor:
        if self._replays or checkpointing.is_reentrant():
            return h
        return struck_step(h, direction, step, call, self._current.inserted.coordinates)

    def moment(self, reentrant: bool) -> Moment:
        if reentrant and self._active:
            self._current.runs_again = True
        return super().moment(reentrant)

    @contextmanager
    def resumed(self, moment: Moment, needed: bool) -> Iterator[None]:
        outer, self._current = self._current, _Pass()
        try:
            with super().resumed(moment, needed):
                yield
        finally:
            self._current = outer

    def _pass_of(self, output: Tensor) -> _Pass:
        for seen in reversed(self._passes):
            if seen.output is not None and seen.output() is output:
                return seen
        if self._passes and not self._passes[-1].runs_again and output.requires_grad:
            return self._passes[-1]
        raise ArgumentError(
            f"output: a tensor of shape {tuple(output.shape)} that no forward pass of the model "
            "under this penalty returned; call penalty(output) on output = model(x), with "
            "gradients enabled; of a model compiled after the penalty was made, make the penalty "
            "from what torch.compile returned; with at='mean', of a compiled model and under "
            "reentrant gradient checkpointing it must be the output itself"
        )

    def _replay(self, seen: _Pass) -> tuple[Tensor, list[tuple[Placement, Tensor]]]:
        """The same pass again with the coordinates in it: same dropout, buffers left alone."""
        model = seen.start or self._original
        if self._keeps_state and seen.start is None:
            raise ModelError(
                "model: keeps a state from pass to pass (a membrane potential, say), which "
                "reentrant gradient checkpointing has changed before the penalty runs the pass "
                "again; use checkpoint(..., use_reentrant=False)"
            )
        inserted = _Inserted(self.at == "mean")
        tensors: dict[str, Tensor] = {n: b.clone() for n, b in model.named_buffers()}
        parameters = dict(self._original.named_parameters())
        tensors |= parameters
        for name, call in self._struck_weights().items():
            tensors[name] = struck_value(parameters[name][None], call, inserted.coordinates)[0]
        args = seen.arguments
        rows = len(args[0])
        actions: dict[Site, Action] = {}
        inside: dict[Site, StepAction] = {}
        for call in self._by_key.values():
            site = call.site
            if call.is_parameter:
                continue

            def act(value: Tensor, call: StruckCall = call) -> Tensor:
                value = _rows_of(value, call, rows)
                struck = struck_value(value, call, inserted.coordinates)
                return struck.movedim(0, call.site.axis)

            if site.kind == "input":
                args = (act(args[0]), *args[1:])
            elif site.is_inside:
                inside[site] = partial(struck_step, call=call, coordinates=inserted.coordinates)
            else:
                actions[site] = act
        if self._is_compiled:
            actions |= self._further_calls()
        kind, dtype, enabled = seen.autocast
        self._busy = True
        try:
            with (
                torch.random.fork_rng(devices=devices_of(model)),
                torch.autocast(kind, dtype, enabled=enabled),
                perturbing(model, actions, inside),
                checkpointing.plainly(),
            ):
                if seen.random_state:
                    _set_random_state(model, seen.random_state)
                output = call_with(model, tensors, args, seen.keywords)
        finally:
            self._busy = False
        return output, inserted.found

    def _struck_weights(self) -> dict[str, StruckCall]:
        calls = self._by_key.values()
        return {call.site.module: call for call in calls if call.is_parameter}

    def _further_calls(self) -> dict[Site, Action]:
        """What refuses more calls of the same neurons than there were; hooks would see them."""

        def refuse(_: Tensor) -> Tensor:
            raise ModelError(
                "model: runs more steps than in the first pass of the compiled model; make the "
                "penalty anew for each number of steps, or of the model without compilation"
            )

        lasts = [p.sites[-1] for p in self.placements if len(p.sites) > 1 and not p.fault.window]
        return {replace(last, call=last.call + 1): refuse for last in lasts}

    # Computing.

    def _sum_of_squares(
        self,
        output: Tensor,
        coordinates: list[tuple[Placement, Tensor]],
        weights: dict[str, StruckCall],
    ) -> Tensor:
        """Mean over examples of sum_k sum_i k2_i (dF_k/de_i)^2, from outputs (B, K)."""
        parameters = self._parameters(weights)
        in_weights = [e for p, e in coordinates if p.site.kind == "parameter"]
        sources = [e for _, e in coordinates] + parameters
        scale = _HALF_SCALE if output.dtype == torch.float16 else 1.0
        total = output.new_zeros((), dtype=torch.promote_types(output.dtype, torch.float32))
        found = False
        for combination, share in self._combinations(output, bool(in_weights or parameters)):
            if combination.requires_grad:
                gradients = torch.autograd.grad(
                    combination * scale, sources, create_graph=True, allow_unused=True
                )
                found = found or any(g is not None for g in gradients)
                n = len(coordinates)
                for (placement, _), g in zip(coordinates, gradients[:n], strict=True):
                    total = total + share * _weighted_square(placement.fault, g, scale)
                for call, w, g in zip(weights.values(), parameters, gradients[n:], strict=True):
                    for placement, g_e in _through(w, call, g):
                        total = total + share * _weighted_square(placement.fault, g_e, scale)
        if not found:
            raise ArgumentError(
                f"output: of shape {tuple(output.shape)} depends on none of the sites "
                f"{', '.join(self.sites)} in the last forward pass; give what model(x) returned"
            )
        return total / len(output)

    def _combinations(self, output: Tensor, per_example: bool) -> list[tuple[Tensor, float]]:
        """Scalars whose squared gradients, summed with these shares, are the sum of squares.

        Examples do not share coordinates of neurons, so one backward pass serves the whole batch;
        they share those of weights.
        """
        if not self.exact:
            shape = (self.draws, *output.shape)
            signs = torch.randint(0, 2, shape, generator=self._generator, dtype=torch.int8)
            signs = signs.to(output.device, output.dtype) * 2 - 1
            return [((sign * output).sum(), 1 / self.draws) for sign in signs]
        rows = output.unbind(0) if per_example else [output.sum(0)]
        return [(value, 1.0) for row in rows for value in row.unbind()]

    def _parameters(self, weights: dict[str, StruckCall]) -> list[Tensor]:
        if not weights:
            return []
        named = dict(self._original.named_parameters())
        for name in weights:
            if not named[name].requires_grad:
                raise ModelError(
                    f"model: faults strike {name!r}, which is frozen; give sites among the "
                    "trained weights, or use at='mean'"
                )
        return [named[name] for name in weights]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state |= {"_passes": [], "_current": _Pass()}
        return {**state, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state.pop("_generator"))
        super().__setstate__({**state, "_generator": generator})


def _rows_of(value: Tensor, call: StruckCall, count: int) -> Tensor:
    """A site's value with the batch first: as many examples, where neurons act often."""
    if all(p.acts_once for p in call.placements):
        return value.movedim(call.site.axis, 0)
    return call.site.by_example(value, count)


def _through(
    weight: Tensor, call: StruckCall, gradient: Tensor | None
) -> list[tuple[Placement, Tensor]]:
    """Derivatives by the coordinates of a weight, from the derivative by the weight."""
    if gradient is None:
        return []
    inserted = _Inserted()
    struck = struck_value(weight[None], call, inserted.coordinates)
    found = torch.autograd.grad(
        struck, [e for _, e in inserted.found], gradient[None], create_graph=True
    )
    return [(p, g) for (p, _), g in zip(inserted.found, found, strict=True)]


def _weighted_square(fault: Fault, gradient: Tensor | None, scale: float) -> Tensor | float:
    if gradient is None:
        return 0.0
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if fault.is_varied:
        return (torch.tensor(fault.variance).to(wide) * wide.square()).sum() / scale**2
    return float(fault.variance) / scale**2 * wide.square().sum()


def _random_state(model: nn.Module) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices_of(model))]


def _set_random_state(model: nn.Module, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices_of(model), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)
