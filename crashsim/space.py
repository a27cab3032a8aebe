"""FaultSpace: a model, its inputs and the faults, as a function F(e) of the fault coordinates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from crashsim_theory import Moments
from torch import Tensor, nn

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.placement import (
    Faults,
    Placement,
    check_strength,
    moments_of,
    patterns_of,
    place,
)
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError, ModelError, NotApplicableError
from crashsim.faults import Fault
from crashsim.injection.derivatives import gradient_of, products_of
from crashsim.injection.strategies import Ways, scalars_of_weights
from crashsim.model.calling import call_with
from crashsim.model.checks import (
    check_model,
    check_outputs,
    dtype_of,
    is_compiled,
    quantises_batches,
    rounding_slack,
    unwrapped,
)
from crashsim.model.discovery import find_sites
from crashsim.model.failures import explaining_failures
from crashsim.model.global_random import Drawing
from crashsim.model.inputs import Inputs, ModelInputs, can_compute, read_inputs
from crashsim.model.multiplied.forward_weights import hold_forward_weights
from crashsim.model.multiplied.weight_names import check_names, told_left
from crashsim.model.number_types import autocast_type, without_autocast
from crashsim.model.readout import find_readout
from crashsim.model.sites import Action, Site, perturbing
from crashsim.model.twins.held_weights import hold_weights
from crashsim.model.twins.twin import PerThread, Twin, keep_apart, twin_of
from crashsim.model.unfused import Unfused
from crashsim.model.unread_parameters import check_read
from crashsim.noticing import notice

# Scalars of activations in flight at once: small enough for the cache, large enough to batch.
_BATCH_SCALARS = 2**22
_GRADIENT_SCALARS = 2**25
_STEP_VALUES = 2**22  # outputs held at once
_STRUCK_APART = 4  # examples, to see whether the model keeps their order
NO_DERIVATIVES = (
    "the model computes its output without derivatives (by steps, under no_grad, or overwriting "
    "what they need)"
)


class FaultSpace:
    """F(e): the outputs of a model on a batch of inputs under fault coordinates e.

    F(0) is the clean output, Delta(e) = F(e) - F(0). The model itself is never run: each thread
    works on a twin of its modules, which shares the parameters' memory, so that other threads may
    use the model meanwhile, and several may use the space. Each evaluation starts from the state
    (attributes, buffers) that the model had when the space was made.

    Args:
        model: any module, in evaluation mode.
        inputs: (B, ...) tensor or array; or a tuple of positional arguments or a mapping of
            keyword arguments, in which every tensor has the batch first. All inputs of the batch
            meet the same faults, as on one chip.
        faults: one fault (struck at ``sites``), or a mapping from site names or globs to faults.
        sites: name or glob of the sites that a single fault strikes; see ``select_sites``.
        dtype: floating-point type to compute in; by default the model's own, whatever autocast
            would make of it.
        readout: which tensor of a structured output is analysed: its name, with dots for what is
            nested, or its number. By default the only floating-point tensor with the batch first,
            or ``logits``.

    Attributes:
        model: a twin of the model without the wrappers of ``torch.compile`` and
            ``DataParallel``; it shares the parameters, and is never run.
        examples: the inputs.
        readout: which tensor of the model's output is analysed.
        runs_alone: whether each sample of each input runs by itself.
        placements: the faults at their sites, in the order of their coordinates.
        N: number of fault coordinates.
        B, K: number of inputs and of outputs (all axes after the batch, flattened).
        mean_point: (N,) E e.
        moments: the coordinates' mean and central moments, each (N,).

    Raises:
        ArgumentError: inputs or faults make no sense.
        SiteError: a name matches no site that the fault can strike.
        ModelError: the model is in training mode, has weights or outputs that are not finite, is
            random, or mixes its inputs; or its weights are changed while the space is used.
    """

    @torch.inference_mode(False)  # whose tensors could not be differentiated later
    def __init__(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        faults: Faults,
        sites: str = "hidden",
        *,
        dtype: torch.dtype | None = None,
        readout: str | int | None = None,
    ) -> None:
        model = unwrapped(model)
        check_model(model)
        if not isinstance(sites, str):
            raise ArgumentError(
                f"sites={sites!r}: give a name or glob; for several, map each name "
                "to its fault in faults"
            )
        known = isinstance(dtype, torch.dtype) and dtype.is_floating_point and can_compute(dtype)
        if dtype is not None and not known:
            raise ArgumentError(f"dtype={dtype!r}; give a type of floating point (torch.float64)")
        self.model = twin_of(model)
        held = hold_weights(self.model)
        self.dtype = dtype or dtype_of(model)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.examples = read_inputs(inputs).to(self.device, self.dtype)
        if other := autocast_type(self.device):
            notice(
                f"torch.autocast: is on ({other}), but the model is scored in {self.dtype}; to "
                f"score it as {other} computes it, give it converted (model.to({other}))",
                stacklevel=4,
            )
        self.runs_alone = quantises_batches(model)
        self._unfused = Unfused(self.model)
        self._changing: set[int | str] = set()
        self._owned: Collection[str] | None = None
        self._drawing = Drawing(self.device)
        self._twins = PerThread(self._make_twin)
        with torch.no_grad(), self._explaining_failures():
            self._try()
            with self._drawing.undone():
                made = hold_forward_weights(
                    self.model, self._twin.module, self.tensors, self.examples, self._raw, held
                )
            if made:
                self._changing.clear()
                self._owned = None
                self._twins.forget()
                self._try()
        with torch.no_grad(), self._explaining_failures(), self._drawing.undone():
            self._twin.looks = True
            self.readout = find_readout(self._raw, self.examples, readout)
            clean = check_outputs(self._call, self.examples)
        self._check_agrees(model, clean)
        with torch.no_grad(), self._explaining_failures(), self._drawing.undone():
            self.available_sites = find_sites(self._twin.module, self.examples, self._forward)
        self._twin.looks = False
        patterns = patterns_of(faults, sites)
        check_names(patterns, held, self.available_sites)
        self.placements = place(faults, sites, self.available_sites)
        check_strength(self.placements, self.dtype)
        with torch.no_grad(), self._explaining_failures(), self._drawing.undone():
            one = self.examples.part(0, 1)
            unread = check_read(
                [p.site for p in self.placements],
                self.tensors,
                lambda tensors: self.readout(self._raw(one.clone(), tensors)),
                lambda tensors: self.readout(self._raw(self.examples.clone(), tensors)),
            )
        for told in (unread, told_left(patterns, held)):
            if told:
                notice(told, stacklevel=4)
        self.N = self.placements[-1].stop
        self.B, self.K = clean.shape
        self.moments = Moments.concatenate([moments_of(placement) for placement in self.placements])
        self.mean_point: Floats = self.moments.mean
        self._clean = clean.double().cpu().numpy()
        self._scalars = sum(s.size for s in self.available_sites if s.kind != "parameter") or 1
        self._has_parameters = any(p.site.kind == "parameter" for p in self.placements)
        self._scalars += scalars_of_weights(self.placements, self.available_sites)
        if self.runs_alone:
            self._scalars = _BATCH_SCALARS  # one input, one sample at a time
        self._each_ways = PerThread(partial(Ways, self))

    def _make_twin(self) -> Twin:
        return Twin(self.model, self.dtype, self._changing, self._owned)

    def _try(self) -> None:
        """A first pass, on copies of all parameters: the forward may write to them.

        Those to which it writes have copies from then on.
        """
        self._twin.looks = True
        self._drawing.watch(lambda: self._raw(self.examples.part(0, 1).repeat(2)))
        self._owned = [n for n, _ in self.model.named_parameters() if n in self._changing]
        keep_apart(self.model, self._owned)
        self._watched = {
            name: (parameter, parameter._version)
            for name, parameter in self.model.named_parameters()
            if name not in self._owned
        }
        self._twin.share(self.model, self._owned)

    def _check_agrees(self, model: nn.Module, clean: Tensor) -> None:
        """Raises ModelError where the twin computes something else than the model itself.

        The model is run once for it, without faults, if a pass leaves nothing behind.
        """
        plain_types = {p.dtype for p in model.parameters() if p.is_floating_point()} <= {self.dtype}
        if self._changing or self._drawing.draws or not plain_types:
            return
        if self.runs_alone or is_compiled(model):
            return
        try:
            with torch.no_grad(), self._unfused():
                output = self.readout(self.examples.clone().call(model)).flatten(1)
        except Exception:  # it does not run as it is (made in inference mode, say)
            return
        wanted, found = output.double(), clean.double()
        finite = torch.isfinite(wanted)
        off = (found - wanted)[finite].abs()
        largest = wanted[finite].abs().amax() if finite.any() else wanted.new_zeros(())
        if bool((off > rounding_slack(self.dtype) * largest).any()):
            raise ModelError(
                "model: a twin of it, which is what runs, gives other outputs than the model (by "
                f"{float(off.amax()):.2g}): something knows its modules or parameters by identity "
                "(a hook's table, id(), a registry of its class, a __deepcopy__ of its own); key "
                "that by name, or keep it in forward"
            )

    def _check_unchanged(self) -> None:
        """Raises ModelError where somebody has written to the parameters since they were read."""
        for name, (parameter, version) in self._watched.items():
            if parameter._version != version:
                raise ModelError(
                    f"model: {name!r} was written to while the model was analysed (is it being "
                    "trained?); give a copy of it (copy.deepcopy)"
                )

    @property
    def _twin(self) -> Twin:
        """What this thread runs."""
        return self._twins()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers that this thread computes with, by name."""
        return self._twin.tensors

    @property
    def _ways(self) -> Ways:
        return self._each_ways()

    def __copy__(self) -> FaultSpace:
        space = object.__new__(type(self))
        space.__dict__.update(self.__dict__)
        return space

    @torch.inference_mode(False)
    def with_dtype(self, dtype: torch.dtype) -> FaultSpace:
        """The same space, computed in another floating-point type."""
        if dtype == self.dtype:
            return self
        space = copy(self)
        space.dtype = dtype
        space.examples = self.examples.to(self.device, dtype)
        space._twins = PerThread(space._make_twin)
        space._each_ways = PerThread(partial(Ways, space))
        with torch.no_grad(), space._explaining_failures(), space._drawing.undone():
            space._clean = check_outputs(space._call, space.examples).double().cpu().numpy()
        return space

    def with_faults(self, faults: Sequence[Fault]) -> FaultSpace:
        """The same space with other faults of as many coordinates at its placements, in order."""
        space = copy(self)
        space.placements = [
            replace(p, fault=fault) for p, fault in zip(self.placements, faults, strict=True)
        ]
        space.moments = Moments.concatenate([moments_of(p) for p in space.placements])
        space.mean_point = space.moments.mean
        space._each_ways = PerThread(partial(Ways, space))
        return space

    def at_input(self, index: int) -> FaultSpace:
        """The same space with one of its inputs alone."""
        space = copy(self)
        space.examples = self.examples.part(index, index + 1)
        space.B = 1
        space._clean = self._clean[index : index + 1]
        return space

    @property
    def inputs(self) -> Tensor:
        """(B, ...) the model's input, for what reads its layers.

        Raises:
            NotApplicableError: the model is no function of one tensor to one tensor.
        """
        tensor = self.examples.lone
        if tensor is None:
            names = (*self.examples.keywords, *map(str, range(len(self.examples.arguments))))
            raise NotApplicableError(
                "for models that are called with one tensor; this one is called with "
                f"{', '.join(names)}"
            )
        if self.readout.steps:
            raise NotApplicableError(
                f"for models that return one tensor; of this one, {self.readout.name!r} is read"
            )
        return tensor

    def clean(self) -> Floats:
        """F(0): (B, K)."""
        return self._clean

    def outputs(self, points: Points) -> Floats:
        """F at each point: (S, B, K).

        Only what lies behind the faults is computed for every point, and rare faults are followed
        through linear layers one by one, where the model allows it: see ``plan``.

        Raises:
            ModelError: an output is not finite.
        """
        with self._at_work():
            result = self._computed(points)
            while self._twin.has_changed() or self._ways.has_changed():
                result = self._computed(points)
        if not np.isfinite(result).all():
            raise ModelError(
                "model: its outputs are not finite (NaN or infinity) under some faults, "
                "though the clean outputs are; look for a division or logarithm after the sites"
            )
        return result

    def _computed(self, points: Points) -> Floats:
        result = np.empty((points.count, self.B, self.K))
        batch = min(self.B, max(1, _BATCH_SCALARS // self._scalars))
        step = max(1, _BATCH_SCALARS // (self._scalars * batch))
        with torch.no_grad():
            choose = self._ways.choose(points)
            for low in range(0, self.B, batch):
                with choose(self.examples.part(low, low + batch)) as (run, most):
                    for start in range(0, points.count, min(step, most)):
                        stop = min(start + min(step, most), points.count)
                        out = run(start, stop).reshape(stop - start, -1, self.K)
                        result[start:stop, low : low + batch] = out.double().cpu().numpy()
        return result

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Where the twin runs: outside of inference mode, on parameters that stay what they are.

        What is interrupted leaves a twin behind that is not used again.
        """
        try:
            with torch.inference_mode(False), without_autocast(), self._drawing.undone():
                yield
        except BaseException as error:
            if not isinstance(error, Exception):
                self._twins.forget()
                self._each_ways.forget()
            raise
        self._check_unchanged()

    def plan(self) -> list[str]:
        """How samples are computed at each site, and why: one line each."""
        with self._at_work():
            return self._ways.plan()

    def gradients(
        self, at: Floats, readouts: Floats | None = None
    ) -> Iterator[tuple[slice, Floats]]:
        """dF/de at a point, for a few inputs at a time.

        Args:
            at: (N,) the point.
            readouts: (R, K) combinations of outputs; by default every output, R = K.

        Yields:
            the slice of inputs, and their gradients (b, R, N). One forward and R backward passes
            for all inputs of a slice; with faults in parameters, for every single input.

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        self._check_derivatives()
        rows = np.eye(self.K) if readouts is None else readouts
        batch = max(1, _GRADIENT_SCALARS // (len(rows) * self.N))
        batch = 1 if self._has_parameters or not self.keeps_order else batch
        for low in range(0, self.B, batch):
            inputs = self.examples.part(low, low + batch)
            with self._at_work(), torch.enable_grad():
                point = torch.from_numpy(at).to(self.device, self.dtype)
                # Each input has coordinates of its own: one backward pass serves all inputs.
                e = point.repeat(1, len(inputs), 1).requires_grad_()
                tensors = self.perturbed_weights(e[0, 0]) if self._has_parameters else {}
                out = self._run(inputs, e, {**self.tensors, **tensors}).sum((0, 1))
                wanted = torch.from_numpy(rows).to(out) @ out
                gradient = torch.stack([gradient_of(value, e)[0] for value in wanted], dim=1)
            yield slice(low, low + len(inputs)), gradient.double().cpu().numpy()

    @property
    def has_derivatives(self) -> bool:
        """Whether the output has a derivative in some coordinate.

        A model that quantises, that computes without derivatives inside, or that overwrites what
        they are computed from, has none.
        """
        return any(p.site.has_gradient for p in self.placements) and self._can_differentiate

    @cached_property
    def _can_differentiate(self) -> bool:
        """Whether torch finds its way back from the output, of one example."""
        with self._at_work(), torch.enable_grad():
            e = torch.zeros(1, 1, self.N, device=self.device, dtype=self.dtype).requires_grad_()
            tensors = self.perturbed_weights(e[0, 0]) if self._has_parameters else {}
            out = self._run(self.examples.part(0, 1), e, {**self.tensors, **tensors})
            try:
                gradient_of(out.sum(), e)
            except RuntimeError:
                return False
        return True

    def _check_derivatives(self) -> None:
        if not self.has_derivatives:
            raise NotApplicableError(NO_DERIVATIVES)

    def hessian_products(
        self, at: Floats, vectors: Floats
    ) -> Iterator[tuple[slice, Floats, Floats]]:
        """Gradients and products of the Hessian with vectors, for a few inputs at a time.

        Args:
            at: (N,) the point.
            vectors: (V, N).

        Yields:
            the slice of inputs, their gradients (b, K, N), and the products (b, K, V, N). Costs K
            times V + 1 backward passes for all inputs of a slice, several of them at a time.

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        self._check_derivatives()
        values = self.K * self.N * (len(vectors) + 1)
        batch = max(1, _GRADIENT_SCALARS // values)
        batch = 1 if self._has_parameters or not self.keeps_order else batch
        together = max(1, _GRADIENT_SCALARS // (self._scalars * min(batch, self.B)))
        for low in range(0, self.B, batch):
            inputs = self.examples.part(low, low + batch)
            with self._at_work(), torch.enable_grad():
                gradients = torch.zeros(len(inputs), self.K, self.N, dtype=self.dtype)
                products = torch.zeros(len(inputs), self.K, len(vectors), self.N, dtype=self.dtype)
                point = torch.from_numpy(at).to(self.device, self.dtype)
                directions = torch.from_numpy(vectors).to(self.device, self.dtype)
                e = point.repeat(1, len(inputs), 1).requires_grad_()
                tensors = self.perturbed_weights(e[0, 0]) if self._has_parameters else {}
                out = self._run(inputs, e, {**self.tensors, **tensors}).sum((0, 1))
                for k in range(self.K):
                    first = gradient_of(out[k], e, create_graph=True)
                    gradients[:, k] = first[0].detach()
                    products[:, k] = products_of(first, e, directions, together)
            yield (
                slice(low, low + len(inputs)),
                gradients.double().cpu().numpy(),
                products.double().cpu().numpy(),
            )

    def single_changes(self, base: Floats, values: Floats) -> Iterator[tuple[Integers, Floats]]:
        """F at ``base`` with one coordinate changed, for many coordinates at a time.

        Args:
            base: (N,) the common point.
            values: (N,) the changed values; coordinates that would not change are left out.

        Yields:
            some coordinates' indices (n,), and the outputs (n, B, K).
        """
        changed = np.flatnonzero(values != base)
        step = max(1, _STEP_VALUES // (self.B * self.K))
        for start in range(0, len(changed), step):
            columns = changed[start : start + step]
            yield columns, self.outputs(Points.one_at_a_time(base, columns, values[columns]))

    @cached_property
    def keeps_order(self) -> bool:
        """Whether the examples of a batch pass the sites in the order in which they are given.

        Else (a model may sort its batch by length) only what strikes all of a batch in the same
        way can be struck at all. Found by striking some examples each in its own way.
        """
        if self.runs_alone or all(p.site.kind == "parameter" for p in self.placements):
            return True
        few = self.examples.spread(_STRUCK_APART).repeat(2)
        rng = generator(0, Stream.ORDER)
        struck = rng.random((1, len(few), self.N)) < 0.5
        e = torch.from_numpy(struck).to(self.device, self.dtype)
        with self._at_work(), torch.no_grad():
            try:
                together = self._run(few, e, self.tensors)[0]
                alone = [
                    self._run(few.part(i, i + 1), e[:, i : i + 1], self.tensors)[0]
                    for i in range(len(few))
                ]
            except Exception:  # the model need not take such values
                return True
        wanted = torch.cat(alone)
        finite = torch.isfinite(wanted)
        slack = rounding_slack(self.dtype) * wanted[finite].abs().max(0)[0]
        return bool(((together - wanted)[finite].abs() <= slack).all())

    def _run(self, inputs: Inputs, e: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Outputs (S, b, K) of b inputs under neuron coordinates e (S, 1 or b, N)."""
        count, batch = e.shape[0], len(inputs)
        x = inputs.repeat(count)
        actions: dict[Site, Action] = {}
        for site in dict.fromkeys(p.site for p in self.placements if p.site.kind != "parameter"):
            placed = [p for p in self.placements if p.site == site]

            def act(value: Tensor, placed: list[Placement] = placed, site: Site = site) -> Tensor:
                rows = site.by_example(value, count * batch)
                faulty = rows.reshape(count, batch, *site.shape)
                for p in placed:
                    faulty = p.fault.perturb(faulty, e[..., p.start : p.stop], site.shape)
                return faulty.to(value.dtype).reshape(rows.shape).movedim(0, site.axis)

            if site.kind == "input":
                index = inputs.site_names.index(site.module)
                x = x.with_tensor(index, act(x.tensors[index]))
            else:
                actions[site] = act
        with perturbing(self._twin.module, actions):
            output: Tensor = self.readout(self._raw(x, tensors))
        return output.reshape(count, batch, -1)

    def perturbed_weights(self, e: Tensor) -> dict[str, Tensor]:
        """Parameters at a point e (N,), differentiable in e."""
        changed: dict[str, Tensor] = {}
        for p in self.placements:
            if p.site.kind == "parameter":
                value = changed.get(p.site.module, self.tensors[p.site.module])
                changed[p.site.module] = p.fault.perturb(value, e[p.start : p.stop], p.site.shape)
        return changed

    def _call(self, x: Inputs) -> Tensor:
        """The outputs (b, ...) that are analysed, of b inputs."""
        if self.runs_alone and len(x) > 1:
            return torch.cat([x.part(i, i + 1).call(self._forward) for i in range(len(x))])
        return x.call(self._forward)

    def _forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        output: Tensor = self.readout(self._called(self.tensors, arguments, keywords))
        return output

    def _raw(self, x: Inputs, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """What the model returns, with these parameters and buffers (its own)."""
        given = self.tensors if tensors is None else tensors
        return x.call(lambda *args, **kwargs: self._called(given, args, kwargs))

    def _called(
        self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        twin = self._twin
        if self._owned:  # so that what the forward writes to them is not there in the next pass
            tensors = {n: t.clone() if n in self._owned else t for n, t in tensors.items()}
        with self._unfused():
            return twin.call(lambda: call_with(twin.module, tensors, arguments, keywords))

    @contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        try:
            with explaining_failures(self.model, self.examples):
                yield
        except ModelError as error:
            if not (self._changing or self._twin.keeps_tensors):
                raise
            raise ModelError(
                f"{error}; it keeps tensors beside its parameters, too: where those are of the "
                "size of a batch, reset the model's state first"
            ) from error
