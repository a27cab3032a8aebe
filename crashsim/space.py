"""FaultSpace: a model, its inputs and the faults, as a function F(e) of the fault coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from crashsim_theory import Moments
from torch import Tensor, nn

from crashsim.arguments import MOST_SAMPLES, check_seed, whole
from crashsim.arrays import Floats, Integers
from crashsim.coordinates.counts import Count
from crashsim.coordinates.drawing import sample_block, samples_per_block
from crashsim.coordinates.placement import (
    Faults,
    counts_of,
    moments_of,
)
from crashsim.coordinates.points import Points, Written
from crashsim.coordinates.telling import left_out, told_struck
from crashsim.errors import NotApplicableError, NotFiniteError
from crashsim.faults import Fault, WordFault
from crashsim.injection.batches import in_batches
from crashsim.injection.derivatives import Derivatives
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.sample import Sample
from crashsim.injection.sample.strikes import check_same_weights, point_of
from crashsim.injection.slopes import Slopes
from crashsim.injection.strategies import Strategies
from crashsim.injection.subject import read_subject
from crashsim.metrics.asked import read_targets
from crashsim.model.inputs import BatchAxis, Inputs, ModelInputs, read_inputs
from crashsim.model.loss import Given, check_asked
from crashsim.model.readout import Readout
from crashsim.model.sites.site import Site
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.model.twins.twin import PerThread
from crashsim.working import worked

NO_MEAN_POINT = (
    "there is no mean point of words whose bits do not add up: a bit of an exponent is set or not"
)
_STEP_VALUES = 2**22  # outputs held at once


class FaultSpace:
    """F(e): the outputs of a model on a batch of inputs under fault coordinates e.

    F(0) is the clean output, Delta(e) = F(e) - F(0). The model itself is never run: each thread
    works on a twin of its modules, which shares the parameters' memory, so that other threads may
    use the model meanwhile, and several may use the space. Each evaluation starts from the state
    (attributes, buffers) that the model had when the space was made; spiking layers of known
    libraries start from their reset state. A space pickles with its
    model, and its copy in another process gives the same numbers.

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
        reset: a function of the model that resets the state which it keeps between calls; it is
            given a twin. Layers of snntorch, spikingjelly and sinabs are reset without it.
        batch_axis: the axis of the inputs that is the batch: 1 in torch's default layout of
            sequences, (T, B, ...); or the axis of each input, by name. Of the output it is found.
        steps_axis: the axis of the struck values that is time, where crashsim cannot know: 1 in
            (B, T, ...). A permanent fault then strikes the same units in all steps; otherwise each
            position is a unit of its own, and ``plan`` says so. Or a mapping from sites to axes.
            Values beside a recurrent or spiking layer whose steps they share need none.
        outputs: ``"loss"``: F(e) is the loss of each example in place of the outputs, and K = 1.
        loss: which: ``"cross-entropy"`` (in nats), ``"mse"``, or a function of (outputs, targets),
            made of torch's operations, that returns (B,) numbers; by default cross-entropy of
            classes, and the mean squared error of other numbers in the outputs' shape.
        targets: (B, ...) what the loss compares the outputs with.

    Attributes:
        faulty_model: the plain pass of the model under faults, which every faster way to compute
            outputs is compared with.
        dtype, device: what it computes in and where.
        examples: the inputs.
        placements: the faults at their sites, in the order of their coordinates.
        counts: the coordinates of which an exact number is struck (``count=``); all others are
            independent.
        N: number of fault coordinates.
        B, K: number of inputs and of outputs (all axes after the batch, flattened).
        mean_point: (N,) E e.
        strikes_words: whether bits are struck whose changes of a value do not add up.
        may_overflow: whether bits are struck that make numbers immense, infinite or NaN.
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
        reset: Reset | None = None,
        batch_axis: BatchAxis = 0,
        steps_axis: StepsAxis | None = None,
        outputs: Literal["loss"] | None = None,
        loss: Given = None,
        targets: Any = None,
    ) -> None:
        examples = read_inputs(inputs, batch_axis)
        compared = None
        if check_asked(outputs, loss, targets is not None or examples.targets is not None):
            compared = read_targets(targets, len(examples))
        subject = read_subject(
            model, examples, faults, sites, dtype, readout, reset, batch_axis, steps_axis, loss,
            compared,
        )  # fmt: skip
        self.examples, self._clean = subject.examples, subject.model.clean
        self._strikes_hidden = subject.strikes_hidden
        self._scalars = subject.scalars
        self._use(FaultyModel(subject.model, subject.examples, subject.placements))
        self.N, self.B, self.K = self.placements[-1].stop, len(self.examples), self.faulty_model.K

    def _use(self, faulty: FaultyModel) -> None:
        self.faulty_model, self.placements = faulty, faulty.placements
        self.counts: tuple[Count, ...] = counts_of(faulty.placements)
        self.dtype, self.device = faulty.model.dtype, faulty.model.device
        for known in ("moments", "mean_point", "slopes"):
            vars(self).pop(known, None)
        self._strategies = PerThread(partial(Strategies, faulty, self._scalars))
        self._derivatives = Derivatives(faulty, self._scalars)
        words = [p.fault for p in faulty.placements if isinstance(p.fault, WordFault)]
        self.strikes_words = any(not fault.adds_up for fault in words)
        self.may_overflow = any(fault.can_overflow for fault in words)

    @cached_property
    def moments(self) -> Moments:
        """Of all coordinates, each (N,): some bytes for each, so made when first asked for."""
        return Moments.concatenate([moments_of(p) for p in self.placements])

    @cached_property
    def mean_point(self) -> Floats:
        """m = E e, (N,)."""
        return np.concatenate([moments_of(p).mean for p in self.placements])

    @property
    def is_random(self) -> bool:
        """Whether any coordinate varies."""
        return any(bool(np.any(np.asarray(p.fault.variance) > 0)) for p in self.placements)

    @cached_property
    def slopes(self) -> Slopes:
        """Derivatives of F by the values that faults displace."""
        return Slopes(self.faulty_model)

    @property
    def _state(self) -> tuple[str, ...]:
        return self.faulty_model.model.state

    def with_dtype(self, dtype: torch.dtype) -> FaultSpace:
        """The same space, computed in another floating-point type."""
        if dtype == self.dtype:
            return self
        space = copy(self)
        space.examples = self.examples.to(self.device, dtype)
        space._use(self.faulty_model.with_dtype(dtype))
        space._clean = space.faulty_model.model.clean_outputs(space.examples)
        return space

    def with_faults(self, faults: Sequence[Fault]) -> FaultSpace:
        """The same space with other faults of as many coordinates at its placements, in order."""
        space = copy(self)
        space._use(self.faulty_model.with_faults(faults))
        return space

    def at_placement(self, number: int) -> FaultSpace:
        """The same space with the faults of one placement alone, whose coordinates begin at 0.

        All that lies before them is computed once for many points. How points are computed is
        chosen for as many examples as the space has.
        """
        space, p = copy(self), self.placements[number]
        one = replace(p, start=0, stop=p.size, count=None)
        space._use(FaultyModel(self.faulty_model.model, self.examples, [one]))
        space.N = p.size
        return space

    def of_outputs(self, chosen: Sequence[int]) -> FaultSpace:
        """F(e) with these outputs alone, in this order: K is their number."""
        space, numbers = copy(self), tuple(chosen)
        space._use(self.faulty_model.of_outputs(numbers))
        space._clean = self._clean[:, list(numbers)]
        space.K = len(numbers)
        return space

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are all that the model returns, and several: one is the largest."""
        return self.K > 1 and self.readout.chosen is None

    def at_input(self, index: int) -> FaultSpace:
        """The same space with one of its inputs alone."""
        space = copy(self)
        space.examples = self.examples.part(index, index + 1)
        space.B = 1
        space._clean = self._clean[index : index + 1]
        return space

    def at_examples(self, examples: Inputs) -> FaultSpace:
        """The same space with other examples of the same shape.

        Raises:
            ModelError: their clean outputs are not finite, or of another shape.
        """
        space = copy(self)
        space.examples = examples.to(self.device, self.dtype)
        space.B = len(examples)
        with self.faulty_model.model.at_work():
            space._clean = self.faulty_model.model.clean_outputs(space.examples)
        return space

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one example's outputs, before they are flattened to K numbers."""
        with self.faulty_model.model.at_work():
            return self.faulty_model.model.output_shape(self.examples)

    @property
    def scalars(self) -> int:
        """Numbers in flight for a sample of one input, about."""
        return self._scalars

    @property
    def model(self) -> nn.Module:
        """A twin of the model without the wrappers of ``torch.compile`` and ``DataParallel``.

        It shares the parameters' memory, and is never run.
        """
        return self.faulty_model.model.original

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers that this thread computes with, by name."""
        return self.faulty_model.model.tensors

    @property
    def readout(self) -> Readout:
        """Which tensor of the model's output is analysed."""
        return self.faulty_model.model.readout

    @property
    def loss(self) -> str | None:
        """The name of the loss that is read in place of the outputs; None: the outputs are."""
        found = self.readout.loss
        return None if found is None else found.name

    @property
    def least_loss(self) -> float | None:
        """What the loss is never below, where it is read; None where there is no such bound."""
        found = self.readout.loss
        return None if found is None else found.low

    @property
    def runs_alone(self) -> bool:
        """Whether each sample of each input runs by itself."""
        return self.faulty_model.model.runs_alone

    @property
    def keeps_order(self) -> bool:
        """Whether the examples of a batch pass the sites in the order in which they are given."""
        return self.faulty_model.keeps_order

    @property
    def available_sites(self) -> list[Site]:
        """All sites of the model, struck or not."""
        return self.faulty_model.model.sites

    @property
    def inputs(self) -> Tensor:
        """(B, ...) the model's input, for what reads its layers.

        Raises:
            NotApplicableError: the model is no function of one tensor to one tensor.
        """
        tensor = self.examples.lone
        if self.examples.batch_axes:
            raise NotApplicableError("for models that take the batch on the first axis")
        if tensor is None:
            names = (*self.examples.keywords, *map(str, range(len(self.examples.arguments))))
            raise NotApplicableError(
                "for models that are called with one tensor; this one is called with "
                f"{', '.join(names)}"
            )
        if self.loss is not None:
            raise NotApplicableError(
                f"reads the model's layers up to its outputs, and what is asked for is its loss "
                f"({self.loss})"
            )
        if self.readout.chosen is not None:
            raise NotApplicableError(
                "reads the model's layers up to all outputs, and some are asked for alone"
            )
        if self.readout.steps:
            raise NotApplicableError(
                f"for models that return one tensor; of this one, {self.readout.name!r} is read"
            )
        return tensor

    def sample(self, seed: int, index: int) -> Sample:
        """The sample of this number that Monte Carlo draws, by itself.

        Its coordinates are those of Monte Carlo's sample to the last bit, its outputs up to the
        rounding of batches of another size.

        Args:
            seed: of Monte Carlo.
            index: the sample's number, from 0.

        Raises:
            ArgumentError: they are no such numbers; or a law that cannot be drawn from.
        """
        seed, index = check_seed(seed), whole("index", index, 0, MOST_SAMPLES)
        block, number = divmod(index, samples_per_block(self.placements))
        points = sample_block(self.placements, seed, block).part(number, number + 1)
        with self.faulty_model.model.at_work():
            return Sample.at(self.faulty_model, points, self.outcomes, seed, index)

    def at_faults(self, faults: Iterable[Any]) -> Sample:
        """The sample in which these faults strike, and no others.

        Args:
            faults: each (site, index), with the index in the site's shape as ``Strike`` says; or
                (site, index, value), with the coordinate's value, for a fault that takes several
                (noise); or a ``Strike`` of another sample, read from a file, say.

        Raises:
            ArgumentError: no such site or index, one of them twice, a value that the fault does
                not take, or strikes that were saved of a model with other weights.
        """
        points, struck = point_of(self.placements, faults, self.N)
        with self.faulty_model.model.at_work():
            check_same_weights(struck, self.placements, self.tensors)
            return Sample.at(self.faulty_model, points, self.outcomes)

    def clean(self) -> Floats:
        """F(0): (B, K)."""
        return self._clean

    def outputs(self, points: Points) -> Floats:
        """F at each point: (S, B, K).

        Only what lies behind the faults is computed for every point, and rare faults are followed
        through linear layers one by one, where the model allows it: see ``plan``.

        Raises:
            NotFiniteError: an output is not finite; ``outcomes`` returns such ones, too.
        """
        result = self.outcomes(points)
        _check_finite(result)
        return result

    def outcomes(self, points: Points) -> Floats:
        """F at each point as it is, infinite and NaN where faults make it so: (S, B, K).

        Raises:
            NotApplicableError: a point lies between the corners where bits are set or not.
        """
        self._check_corners(points)
        with self.faulty_model.model.at_work():
            result = self._computed(points)
            while self.faulty_model.model.has_changed() or self.strategies.has_changed():
                result = self._computed(points)
        return result

    def _check_corners(self, points: Points) -> None:
        """Raises NotApplicableError for points with a part of a bit that does not add up."""
        if not self.strikes_words:
            return
        for p in self.placements:
            if not isinstance(p.fault, WordFault) or p.fault.adds_up:
                continue
            found = [points.base[p.start : p.stop]]
            for change in points.changes:
                if isinstance(change, Written):
                    found.append(
                        change.e[:, max(p.start - change.start, 0) : p.stop - change.start]
                    )
                elif not isinstance(change.values, float):
                    at = change.columns + change.start
                    found.append(change.values[(at >= p.start) & (at < p.stop)])
                elif change.start < p.stop and p.start < change.stop:
                    found.append(np.array(change.values))
            if not all(((values == 0) | (values == 1)).all() for values in found):
                raise NotApplicableError(NO_MEAN_POINT)

    def _computed(self, points: Points) -> Floats:
        with torch.no_grad():
            strategy = self.strategies.choose(points)
            return in_batches(strategy, self.examples, points.count, self.K)

    @property
    def strategies(self) -> Strategies:
        """How this thread computes samples."""
        found = self._strategies()
        if found.are_stale:
            self._strategies.forget()
            found = self._strategies()
        return found

    def plan(self) -> list[str]:
        """How samples are computed at each site, and why: one line each.

        Then what the faults strike, where that is not each number once; what ``hidden`` left out;
        and what state is reset.
        """
        with self.faulty_model.model.at_work():
            lines = self.strategies.plan()
        lines += told_struck(self.placements)
        if self._strikes_hidden:
            lines += left_out(self.available_sites, self.placements)
        return lines + [f"state: reset before each pass, {how}" for how in self._state]

    def gradients(
        self, at: Floats, readouts: Floats | None = None
    ) -> Iterator[tuple[slice, Floats]]:
        """dF/de at a point, for a few inputs at a time.

        Args:
            at: (N,) the point.
            readouts: (R, K) combinations of outputs; by default every output, R = K.

        Yields:
            the slice of inputs, and their gradients (b, R, N). One forward and R backward passes
            for all inputs of a slice, or, of every output, 3 N if these are fewer; with faults in
            parameters, for every single input.

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        count = self.K if readouts is None else len(readouts)
        for where, found in self._derivatives.gradients(self.examples, at, readouts):
            worked(len(found) * (1 + 2 * count))
            yield where, found

    @property
    def has_derivatives(self) -> bool:
        """Whether the output has a derivative in some coordinate.

        A model that quantises, that computes without derivatives inside, or that overwrites what
        they are computed from, has none; nor have faults on which spikes depend, whose surrogate
        gradient is not taken for a derivative.
        """
        return self._derivatives.exist

    @property
    def why_no_derivatives(self) -> str:
        """Why the output has no derivative, where it has none."""
        return self._derivatives.why_none

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
        for where, gradients, products in self._derivatives.hessian_products(
            self.examples, at, vectors
        ):
            worked(len(gradients) * self.K * (2 + 2 * len(vectors)))
            yield where, gradients, products

    def single_changes(self, base: Floats, values: Floats) -> Iterator[tuple[Integers, Floats]]:
        """F at ``base`` with one coordinate changed, for many coordinates at a time.

        Args:
            base: (N,) the common point.
            values: (N,) the changed values; coordinates that would not change are left out.

        Yields:
            some coordinates' indices (n,), and the outputs (n, B, K).

        Raises:
            NotFiniteError: an output is not finite; ``single_outcomes`` yields such ones, too.
        """
        for columns, outputs in self.single_outcomes(base, values):
            _check_finite(outputs)
            yield columns, outputs

    def single_outcomes(self, base: Floats, values: Floats) -> Iterator[tuple[Integers, Floats]]:
        """The same with outputs as they are, infinite and NaN where faults make them so."""
        changed = np.flatnonzero(values != base)
        step = max(1, _STEP_VALUES // (self.B * self.K))
        for start in range(0, len(changed), step):
            columns = changed[start : start + step]
            yield columns, self.outcomes(Points.one_at_a_time(base, columns, values[columns]))


def _check_finite(outputs: Floats) -> None:
    """Raises NotFiniteError for outputs that are infinite or NaN."""
    if not np.isfinite(outputs).all():
        raise NotFiniteError(
            "model: its outputs are not finite (NaN or infinity) under some faults, though the "
            "clean outputs are: values or words of these faults overflow, or a division or "
            "logarithm after the sites does; Monte Carlo counts such outputs"
        )
