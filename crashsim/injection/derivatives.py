"""First and second derivatives in fault coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import NotApplicableError
from crashsim.faults import WordFault
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.few_words import FewWords, has_many_words
from crashsim.model.graph.untraced import is_all_torchs
from crashsim.model.inputs import Inputs

_GRADIENT_SCALARS = 2**25  # numbers of derivatives, or of their graph, held at once
_EXAMPLES_LOOKED_AT = 4  # to see whether a gradient is that of the output
_COORDINATES_LOOKED_AT = 8  # of each of them: those of the largest gradients
# The same where coordinates are very many: there a pass takes long.
_EXAMPLES_OF_MANY, _COORDINATES_OF_MANY = 2, 4
_MUCH, _LITTLE = 0.5, 0.1  # changes of such a coordinate
_NOTICEABLE = 1e3  # times rounding, that its gradient says the output changes
_COLUMN = 3  # backward passes that one through a backward pass takes
GUARDED = (
    "faults that a code, a vote or a comparison corrects act through several at once, of which no "
    "derivative tells"
)
WORDS = (
    "bits of words that do not add up (an exponent's multiply the number by up to 1e38) have no "
    "small steps to expand in"
)
NO_DERIVATIVES = (
    "the model computes its output without derivatives (by steps, under no_grad, or overwriting "
    "what they need)"
)
SPIKES = (
    "spikes have no derivative (a surrogate gradient, which the model may have for training, is "
    "another function's)"
)


class Derivatives:
    """Derivatives of F(e), for a few inputs at a time.

    Args:
        faulty: F.
        scalars: numbers in flight for a sample of one input.
    """

    def __init__(self, faulty: FaultyModel, scalars: int) -> None:
        self._faulty, self._scalars = faulty, scalars

    @cached_property
    def exist(self) -> bool:
        """Whether the output has a derivative in some coordinate, found with one example.

        Where spikes depend on a struck value there is none, but a surrogate gradient at most; nor
        is there one in bits that do not add up, which are set or not; nor where some of the struck
        values pass a step (a layer that rounds), so that theory would miss what they do.
        """
        if self._strikes_words or self._strikes_guarded:
            return False
        return not self._passes_spikes and self._has_gradient and not self._moves_by_steps

    @property
    def _strikes_words(self) -> bool:
        faults = (p.fault for p in self._faulty.placements)
        return any(isinstance(fault, WordFault) and not fault.adds_up for fault in faults)

    @property
    def _strikes_guarded(self) -> bool:
        """Whether copies vote or are compared: one alone does little or nothing, so that a
        derivative says nothing of what several do."""
        return any(p.fault.is_guarded for p in self._faulty.placements)

    @cached_property
    def _has_gradient(self) -> bool:
        faulty = self._faulty
        if not any(site.has_gradient for p in faulty.placements for site in p.sites):
            return False
        if self._few_words is not None:
            try:
                _ = self._first_steepest
            except RuntimeError:
                return False
            return True
        with faulty.model.at_work(), torch.enable_grad():
            e, out = self._forward(faulty.examples.part(0, 1), np.zeros(faulty.N))
            try:
                gradient_of(out.sum(), e)
            except RuntimeError:
                return False
        return True

    @cached_property
    def _few_words(self) -> FewWords | None:
        """What looks at a few of very many bits; None where all coordinates are looked at."""
        return FewWords(self._faulty) if has_many_words(self._faulty) else None

    @cached_property
    def _acts_on_spikes(self) -> bool:
        sites = [site for p in self._faulty.placements for site in p.sites]
        return any(site.acts_on_spikes and site.is_read for site in sites)

    @cached_property
    def _passes_spikes(self) -> bool:
        """Whether spikes lie between the struck values and the output, wherever they are computed.

        Spiking neurons that are known say so. Those that the model computes in line, behind its
        last layer, show it: the output stays what it is, to the last bit, where a gradient says
        that it changes much.
        """
        if self._acts_on_spikes:
            return True
        if is_all_torchs(self._faulty.model.original):  # none of which spikes
            return False
        return self._has_gradient and self._stays_despite_gradients()

    def _stays_despite_gradients(self) -> bool:
        faulty = self._faulty
        rounding = torch.finfo(faulty.model.dtype).eps
        most = _EXAMPLES_LOOKED_AT if self._few_words is None else _EXAMPLES_OF_MANY
        for index in range(min(most, len(faulty.examples))):
            example = faulty.examples.part(index, index + 1)
            clean, steep, slopes = self._steepest(example) if index else self._first_steepest
            least = _NOTICEABLE * rounding * (float(np.abs(clean).sum()) + rounding) / _LITTLE
            least = max(least, 0.2 * float(slopes[0]))
            if self._stays(example, clean, steep[slopes >= least].tolist()):
                return True
        return False

    @cached_property
    def _first_steepest(self) -> tuple[Floats, Integers, Floats]:
        return self._steepest(self._faulty.examples.part(0, 1))

    def _steepest(self, example: Inputs) -> tuple[Floats, Integers, Floats]:
        """The clean outputs, the steepest coordinates, and how steep they are, steepest first."""
        faulty = self._faulty
        if (words := self._few_words) is not None:
            columns, sizes = words.steepest(example, _COORDINATES_OF_MANY)
            few = slice(_COORDINATES_OF_MANY)
            return words.clean(example), columns[few], sizes[few]
        with faulty.model.at_work(), torch.enable_grad():
            e, clean = self._forward(example, np.zeros(faulty.N))
            slopes = gradient_of(clean.sum(), e)[0, 0].abs()
        found = slopes.topk(min(_COORDINATES_LOOKED_AT, faulty.N))
        outputs = clean.detach().double().cpu().numpy()
        return outputs, found.indices.cpu().numpy(), found.values.double().cpu().numpy()

    def _moved(self, example: Inputs, coordinate: int, change: float) -> Floats:
        """(K,) the outputs with one coordinate changed."""
        if self._few_words is not None:
            return self._few_words.moved(example, coordinate, change)
        at = np.zeros(self._faulty.N)
        at[coordinate] = change
        with self._faulty.model.at_work(), torch.no_grad():
            return np.asarray(self._forward(example, at)[1].double().cpu().numpy())

    def _stays(self, example: Inputs, clean: Floats, coordinates: list[int]) -> bool:
        """Whether an output is the same after a large change of one, or a small one of any."""

        def is_same(coordinate: int, change: float) -> bool:
            return np.array_equal(self._moved(example, coordinate, change), clean)

        if any(is_same(c, _MUCH) for c in coordinates):
            return True
        return bool(coordinates) and all(is_same(c, _LITTLE) for c in coordinates)

    @cached_property
    def _moves_by_steps(self) -> bool:
        """Whether the faults of some placement move the output, but no gradient says so."""
        faulty = self._faulty
        rounding = _NOTICEABLE * torch.finfo(faulty.model.dtype).eps
        few = min(_EXAMPLES_LOOKED_AT, len(faulty.examples))
        examples = [faulty.examples.part(i, i + 1) for i in range(few)]
        flat = set(range(len(faulty.placements)))
        for example in examples:
            flat &= self._flat(example)
            if not flat:
                return False
        for example in examples:
            clean = self._with_all_of(example, None)
            least = rounding * (float(np.abs(clean).max()) + rounding)
            for number in flat:
                moved = self._with_all_of(example, number)
                if not float(np.abs(moved - clean).max()) <= least:
                    return True
        return False

    def _flat(self, example: Inputs) -> set[int]:
        """The numbers of the placements in which every derivative is 0."""
        faulty = self._faulty
        rows = np.cos(np.arange(1, faulty.K + 1))  # no sum of outputs that is constant
        if self._few_words is not None:
            return self._few_words.flat(example, rows)
        with faulty.model.at_work(), torch.enable_grad():
            e, out = self._forward(example, np.zeros(faulty.N))
            slopes = gradient_of(out, e, weights=torch.from_numpy(rows).to(out))[0, 0]
        return {
            i for i, p in enumerate(faulty.placements) if not slopes[p.start : p.stop].any().item()
        }

    def _with_all_of(self, example: Inputs, number: int | None) -> Floats:
        """(K,) the outputs when every fault of a placement strikes, or none at all."""
        if self._few_words is not None:
            return self._few_words.with_all_of(example, number)
        at = np.zeros(self._faulty.N)
        if number is not None:
            p = self._faulty.placements[number]
            at[p.start : p.stop] = 1.0
        with self._faulty.model.at_work(), torch.no_grad():
            return np.asarray(self._forward(example, at)[1].double().cpu().numpy())

    @property
    def why_none(self) -> str:
        """Why there are none, where there are none."""
        if self._strikes_guarded:
            return GUARDED
        if self._strikes_words:
            return WORDS
        return SPIKES if self._passes_spikes else NO_DERIVATIVES

    def _check_exist(self) -> None:
        if not self.exist:
            raise NotApplicableError(self.why_none)

    def gradients(
        self, examples: Inputs, at: Floats, readouts: Floats | None = None
    ) -> Iterator[tuple[slice, Floats]]:
        """dF/de at a point (N,), of combinations of outputs (R, K), or of each.

        Yields:
            the slice of examples, and their gradients (b, R, N).

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        self._check_exist()
        N, count = self._faulty.N, self._faulty.K if readouts is None else len(readouts)
        for where, inputs in self._slices(examples, count * N):
            with self._faulty.model.at_work(), torch.enable_grad():
                gradient = None
                if readouts is None and count > N * _COLUMN:
                    gradient = by_columns(*self._outputs(inputs, at))
                if gradient is None:
                    e, out = self._forward(inputs, at)
                    rows = torch.from_numpy(np.eye(count) if readouts is None else readouts).to(out)
                    each = [gradient_of(out, e, weights=row)[0] for row in rows]
                    gradient = torch.stack(each, dim=1)
            yield where, gradient.double().cpu().numpy()

    def hessian_products(
        self, examples: Inputs, at: Floats, vectors: Floats
    ) -> Iterator[tuple[slice, Floats, Floats]]:
        """Gradients and products of the Hessian with vectors (V, N) at a point (N,).

        Yields:
            the slice of examples, their gradients (b, K, N), and the products (b, K, V, N).

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        self._check_exist()
        model, N, K = self._faulty.model, self._faulty.N, self._faulty.K
        values = K * N * (len(vectors) + 1)
        batch = min(self._batch(values), len(examples))
        together = max(1, _GRADIENT_SCALARS // (self._scalars * batch))
        for where, inputs in self._slices(examples, values):
            with model.at_work(), torch.enable_grad():
                gradients = torch.zeros(len(inputs), K, N, dtype=model.dtype)
                products = torch.zeros(len(inputs), K, len(vectors), N, dtype=model.dtype)
                directions = torch.from_numpy(vectors).to(model.device, model.dtype)
                e, out = self._forward(inputs, at)
                for k in range(K):
                    first = gradient_of(out[k], e, create_graph=True)
                    gradients[:, k] = first[0].detach()
                    products[:, k] = products_of(first, e, directions, together)
            yield where, gradients.double().cpu().numpy(), products.double().cpu().numpy()

    def _batch(self, values: int) -> int:
        """How many inputs share a pass.

        Args:
            values: number of derivatives of each.
        """
        alone = self._faulty.strikes_weights or not self._faulty.keeps_order
        return 1 if alone else max(1, _GRADIENT_SCALARS // values)

    def _slices(self, examples: Inputs, values: int) -> Iterator[tuple[slice, Inputs]]:
        batch = self._batch(values)
        for low in range(0, len(examples), batch):
            inputs = examples.part(low, low + batch)
            yield slice(low, low + len(inputs)), inputs

    def _forward(self, inputs: Inputs, at: Floats) -> tuple[Tensor, Tensor]:
        """Coordinates (1, b, N) of inputs, and the outputs (K,) summed over these."""
        e, out = self._outputs(inputs, at)
        return e, out.sum((0, 1))

    def _outputs(self, inputs: Inputs, at: Floats) -> tuple[Tensor, Tensor]:
        """Coordinates (1, b, N) of inputs, and the outputs (1, b, K)."""
        faulty, model = self._faulty, self._faulty.model
        point = torch.from_numpy(at).to(model.device, model.dtype)
        # Each input has coordinates of its own: one backward pass serves all inputs.
        e = point.repeat(1, len(inputs), 1).requires_grad_()
        tensors = {**model.tensors, **faulty.perturbed_weights(e[0, 0])}
        return e, faulty.run(inputs, e, tensors)


def gradient_of(
    value: Tensor, e: Tensor, create_graph: bool = False, weights: Tensor | None = None
) -> Tensor:
    """d value / d e, zero where value does not depend on e.

    Args:
        value: a number; or several, of which ``weights`` of the same shape say the sum.
        create_graph: whether it has derivatives of its own.
    """
    if not value.requires_grad:
        return torch.zeros_like(e)
    # A sum rather than torch's grad_outputs, which import sympy when they are first given.
    total = value if weights is None else (value * weights).sum()
    found = torch.autograd.grad(
        total, e, retain_graph=True, create_graph=create_graph, allow_unused=True
    )[0]
    return torch.zeros_like(e) if found is None else found


def by_columns(e: Tensor, out: Tensor) -> Tensor | None:
    """Gradients of all outputs, by one backward pass for each coordinate.

    The gradient of sum v_k F_k is linear in v: its derivatives by v are the columns dF/de_i. One
    random v then says whether they are right, since an operation with a backward pass of its own
    may leave no trace in it.

    Args:
        e, out: coordinates (1, b, N) and outputs (1, b, K).

    Returns:
        (b, K, N); None where the backward pass cannot be differentiated.
    """
    if not out.requires_grad:
        return None
    random = generator(0, Stream.COLUMNS).standard_normal(out.shape[1:])
    v = torch.from_numpy(random).to(out)[None].requires_grad_()
    try:
        along = gradient_of((out * v).sum(), e, create_graph=True)
        if not along.requires_grad:
            return None
        columns = [gradient_of(one.sum(), v)[0] for one in along[0].unbind(-1)]
    except RuntimeError:
        return None
    jacobian, wanted = torch.stack(columns, dim=-1), along[0].detach()
    found, size = (
        torch.einsum("bk,bkn->bn", part, whole)
        for part, whole in ((v[0].detach(), jacobian), (v[0].detach().abs(), jacobian.abs()))
    )
    rounding = _NOTICEABLE * torch.finfo(out.dtype).eps
    if not ((found - wanted).abs() <= rounding * (size + wanted.abs())).all():
        return None
    return jacobian


def products_of(gradient: Tensor, e: Tensor, directions: Tensor, together: int) -> Tensor:
    """The Hessian's products with directions.

    Args:
        gradient: (1, b, N), a function of e.
        e: (1, b, N), a point for each of b inputs.
        directions: (V, N).
        together: how many of them at a time.

    Returns:
        (b, V, N).
    """
    found = torch.zeros(len(directions), *e.shape[1:], dtype=e.dtype, device=e.device)
    if not gradient.requires_grad:
        return found.movedim(0, 1)
    for part, some in zip(found.split(together), directions.split(together), strict=True):
        along = some[:, None, None].expand(-1, *gradient.shape)
        try:
            (several,) = torch.autograd.grad(
                gradient, e, along, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        except RuntimeError:  # an operation that cannot take several at a time
            each = [gradient_of((gradient * direction).sum(), e) for direction in some]
            several = torch.stack(each)
        if several is not None:
            part.copy_(several[:, 0])
    return found.movedim(0, 1)
