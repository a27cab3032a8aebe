"""A model that runs apart from the user's: on a twin for each thread, always from the same state.

The user's model is never changed, not even for a while. What a pass leaves behind in a twin
(membranes, counters, caches) is put back before the next one, and so are the global random numbers
that the model draws.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crashsim.arrays import Floats
from crashsim.errors import CrashsimError, ModelError
from crashsim.model.checks import check_outputs, is_compiled, quantises_batches, rounding_slack
from crashsim.model.failures import described, explaining_failures
from crashsim.model.global_random import Drawing
from crashsim.model.inputs import Inputs
from crashsim.model.loss import Given, loss_of
from crashsim.model.multiplied.forward_weights import hold_forward_weights
from crashsim.model.number_types import without_autocast
from crashsim.model.readout import Readout, find_readout
from crashsim.model.sites.discovery import discovered
from crashsim.model.sites.feature_axis import marked_features
from crashsim.model.sites.passes import watched_values
from crashsim.model.sites.site import Site
from crashsim.model.twins.held_tensors import hold_tensors
from crashsim.model.twins.held_weights import hold_weights
from crashsim.model.twins.resetting import Reset, reset_twin, states_of
from crashsim.model.twins.twin import PerThread, Twin, keep_apart
from crashsim.model.unfused import Unfused
from crashsim.model.unread_parameters import check_read
from crashsim.working import worked


class IsolatedModel:
    """A model without faults, run without touching the user's modules.

    It pickles with its weights. The copy starts from the same state and makes its own twins, once
    it is run.

    Args:
        model: the user's, in evaluation mode, without wrappers such as ``torch.compile``.
        examples: a batch of inputs on the model's device, in ``dtype``.
        dtype: floating-point type to compute in.
        readout: name or number of the analysed tensor of a structured output; see
            ``find_readout``.
        reset: resets the state of the module that it is given; None: as the layers' libraries do.
        named: names of sites, of which some may be tensors beside the parameters; those are held as
            parameters.
        loss: where the examples have targets, the loss that is read in place of the outputs.

    Attributes:
        dtype, device: what it computes in and where.
        state: how state that the model keeps was reset, in words.
        readout: which tensor of the model's output is analysed.
        runs_alone: whether each sample of each input runs by itself.
        sites: all sites of the model.
        held: the weights that layers multiply by, where they are computed from other tensors.
        missed, looped, fed_back, closed: what cannot be struck; see ``discovered``.
        clean: (B, K) outputs of the examples that it was made with, in the type that it was made
            in, all axes after the batch flattened.
        layer_by_layer: ``with layer_by_layer():`` torch runs no layers as one, so that faults find
            their sites.

    Raises:
        ModelError: its outputs are not finite, random, or depend on the other inputs of a batch;
            or a twin computes something else than the model.
        ArgumentError: ``readout`` names no part of the output.
    """

    @torch.inference_mode(False)  # whose tensors could not be differentiated later
    def __init__(
        self,
        model: nn.Module,
        examples: Inputs,
        dtype: torch.dtype,
        readout: str | int | None,
        reset: Reset | None = None,
        named: Collection[str] = (),
        loss: Given = None,
    ) -> None:
        self._original: nn.Module | None
        self._original, self.state = reset_twin(model, reset)
        self.held = hold_weights(self._original)
        hold_tensors(self._original, named)
        self._pickled: bytes | None = None
        self.dtype = dtype
        self.device = device_of(model)
        self.runs_alone = quantises_batches(model)
        self.layer_by_layer = Unfused(self.original)
        self._changing: set[int | str] = set()
        self._owned: Collection[str] | None = None
        self._drawing = Drawing(self.device)
        self._pair = examples.part(0, 1).repeat(2)
        self._renew()
        with torch.no_grad(), self._explaining_failures(examples):
            self._try()
            self._hold_forward_weights(examples)
        with torch.no_grad(), self._drawing.undone():
            self._twin.looks = True
            self.readout, clean = self._checked(examples, readout)
        self._check_agrees(model, examples, clean)
        if examples.targets is not None:
            clean = self._read_loss(loss, examples)
        self.clean: Floats = clean.double().cpu().numpy()
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            found = discovered(self.module, examples, self._forward)
        self.sites, self.missed, self.looped, self.fed_back, self.closed = found
        self._twin.looks = False

    def _checked(self, examples: Inputs, readout: str | int | None) -> tuple[Readout, Tensor]:
        """The readout, and the clean outputs of the examples.

        Raises:
            ModelError: the model cannot be analysed, and which axis of the inputs looks like the
                batch, if it is another than was said.
        """
        try:
            with self._explaining_failures(examples):
                self.readout = find_readout(self.raw, examples, readout)
                return self.readout, check_outputs(self.outputs, examples)
        except ModelError as error:
            axis = self._likely_batch_axis(examples, readout)
            if axis is None:
                raise
            said = "the first axis of the inputs must be the batch"
            if examples.batch_axes:
                said = f"axis {max(examples.batch_axes)} of the inputs was said to be the batch"
            raise ModelError(
                f"model: {said}, but axis {axis} looks like it in {examples.describe()}: along it "
                f"alone can examples be added that do not change the others; give "
                f"batch_axis={axis}, or inputs.movedim({axis}, 0) to a model with batch_first=True"
            ) from error

    def _read_loss(self, loss: Given, examples: Inputs) -> Tensor:
        """Reads a loss in place of the outputs from now on; returns it for the examples, (B, 1)."""
        assert examples.targets is not None
        targets = examples.targets.cpu().numpy()
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            found = loss_of(loss, self.outputs(examples.clone()), targets)
            self.readout = replace(self.readout, loss=found)
            return check_outputs(self.outputs, examples)

    def _likely_batch_axis(self, examples: Inputs, readout: str | int | None) -> int | None:
        """The only axis of the inputs along which the model takes examples one by one."""
        found = []
        for axis in range(max(t.dim() for t in examples.tensors)):
            other = examples.as_batch_on(axis)
            if other is None or other.batch_axes == (examples.batch_axes or other.batch_axes[:0]):
                continue
            if not examples.batch_axes and not any(other.batch_axes):
                continue
            try:
                with self.layer_by_layer():
                    self.readout = find_readout(self.raw, other, readout)
                    check_outputs(self.outputs, other)
            except (CrashsimError, RuntimeError, ValueError, IndexError, TypeError):
                continue
            found.append(axis)
        return found[0] if len(found) == 1 else None

    def _renew(self) -> None:
        """Forgets the twins of all threads."""
        self._twins = PerThread(self._make_twin)
        self._loading = RLock()

    def _make_twin(self) -> Twin:
        return Twin(self.original, self.dtype, self._changing, self._owned)

    def _try(self) -> None:
        """A first pass, on copies of all parameters: the forward may write to them.

        Those to which it writes have copies from then on.
        """
        original = self.original
        self._twin.looks = True
        self._drawing.watch(lambda: self.raw(self._pair.clone()))
        self._owned = [n for n, _ in original.named_parameters() if n in self._changing]
        keep_apart(original, self._owned)
        self._watched = self._versions(original)
        self._twin.share(original, self._owned)

    def _hold_forward_weights(self, examples: Inputs) -> None:
        """Makes weights of what the forward pass computes and multiplies by."""
        with self._drawing.undone():
            made = hold_forward_weights(
                self.original, self.module, self.tensors, examples, self.raw, self.held
            )
        if made:
            self._changing.clear()
            self._owned = None
            self._twins.forget()
            self._try()

    def _versions(self, original: nn.Module) -> dict[str, tuple[Tensor, int]]:
        """The parameters that are shared with the user's model, and how often each was written."""
        return {
            name: (parameter, parameter._version)
            for name, parameter in original.named_parameters()
            if name not in (self._owned or ())
        }

    def _check_agrees(self, model: nn.Module, examples: Inputs, clean: Tensor) -> None:
        """Raises ModelError where the twin computes something else than the model itself.

        The model is run once for it, without faults, if a pass leaves nothing behind.
        """
        plain_types = {p.dtype for p in model.parameters() if p.is_floating_point()} <= {self.dtype}
        if self._changing or self._drawing.draws or not plain_types or self.state:
            return
        if self.runs_alone or is_compiled(model):
            return
        try:
            with torch.no_grad(), self.layer_by_layer():
                output = self.readout(examples.clone().call(model)).flatten(1)
        except Exception:  # it does not run as it is (made in inference mode, say)
            return
        if (off := _distance(output, clean, self.dtype)) is not None:
            raise ModelError(
                "model: a twin of it, which is what runs, gives other outputs than the model (by "
                f"{off:.2g}): something knows its modules or parameters by identity "
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

    @contextmanager
    def _explaining_failures(self, examples: Inputs) -> Iterator[None]:
        try:
            with explaining_failures(self.original, examples):
                yield
        except ModelError as error:
            if not (self._changing or self._twin.keeps_tensors):
                raise
            raise self._explained_by_state(error) from error

    def _explained_by_state(self, error: ModelError) -> ModelError:
        """The error of a model that keeps tensors, which may be left over from another batch."""
        names = states_of(self.original)
        who = f" ({', '.join(names[:3])})" if names else ""
        remedy = (
            "reset it before, or give reset=, a function of the model that does "
            "(lambda model: setattr(model.lif, 'v', 0.0))"
        )
        if "other inputs of the batch" in str(error) and self._changing:
            return ModelError(
                f"model: keeps a state between calls{who}, and with the state that it has an "
                f"input's output depends on its place in the batch; {remedy}"
            )
        return ModelError(
            f"{error}; it keeps tensors beside its parameters, too{who}: where those are left over "
            f"from a batch of another size, {remedy}"
        )

    @property
    def original(self) -> nn.Module:
        """A twin that shares the parameters' memory and is never run, for those who read layers."""
        if self._pickled is not None:  # until all of what threads share is there
            with self._loading:
                if self._original is None and self._pickled is not None:
                    try:
                        self._load(self._pickled)
                    except BaseException:
                        self._original = None
                        self._twins.forget()
                        raise
                    self._pickled = None
        assert self._original is not None
        return self._original

    @property
    def _twin(self) -> Twin:
        """What this thread runs."""
        return self._twins()

    @property
    def module(self) -> nn.Module:
        """The modules that this thread runs; whoever changes them puts them back."""
        return self._twin.module

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers that this thread computes with, by name."""
        return self._twin.tensors

    @property
    def writes_parameters(self) -> bool:
        """Whether the forward pass writes to the model's own parameters."""
        return bool(self._owned)

    def raw(self, x: Inputs, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """What the model returns, with these parameters and buffers (by default its own)."""
        given = self.tensors if tensors is None else tensors
        return x.call(lambda *args, **kwargs: self._called(given, args, kwargs))

    def outputs(self, x: Inputs) -> Tensor:
        """The analysed outputs (b, ...) of b inputs."""
        alone = self.runs_alone and len(x) > 1
        parts = [x.part(i, i + 1) for i in range(len(x))] if alone else [x]
        found = [self.readout(self.raw(part), part.targets) for part in parts]
        return torch.cat(found) if alone else found[0]

    def _forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The model's own outputs, whatever is read of them."""
        called = self._called(self.tensors, arguments, keywords)
        output: Tensor = replace(self.readout, loss=None, chosen=None)(called)
        return output

    def _called(
        self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        twin = self._twin
        if self._owned:  # so that what the forward writes to them is not there in the next pass
            tensors = {n: t.clone() if n in self._owned else t for n, t in tensors.items()}
        with self.layer_by_layer():
            output = twin.call(lambda: twin.run_with(tensors, arguments, keywords))
        worked(0.0)  # whoever counts passes does so himself; this tells that something is done
        return output

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, ``raw`` with this very mapping need not swap it in and out for each pass.

        The tensors themselves may be written to between passes.
        """
        if self._owned:  # which are copied for each pass
            yield
            return
        with self._twin.holding(tensors):
            yield

    @torch.inference_mode(False)
    def checked_outputs(self, examples: Inputs) -> Floats:
        """(B, K) the outputs of examples.

        Raises:
            ModelError: they are not finite, random, or depend on the other examples.
        """
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            found: Floats = check_outputs(self.outputs, examples).double().cpu().numpy()
        return found

    @torch.inference_mode(False)
    def clean_outputs(self, examples: Inputs) -> Floats:
        """(B, K) the outputs of other examples than those that the model was tried with.

        Raises:
            ModelError: they are not finite, or of another shape.
        """
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            outputs = self.outputs(examples.clone())  # the model may write to what it is given
        found: Floats = outputs.reshape(len(examples), -1).double().cpu().numpy()
        if found.shape[1] != self.clean.shape[1]:
            raise ModelError(
                f"model: returns {found.shape[1]} numbers for some examples and "
                f"{self.clean.shape[1]} for others; pad the inputs to one shape"
            )
        if not np.isfinite(found).all():
            raise ModelError(
                "model: its clean outputs are not finite (NaN or infinity) for some of the "
                "examples; look at the inputs' scale and the weights"
            )
        return found

    @torch.inference_mode(False)
    def output_shape(self, examples: Inputs) -> tuple[int, ...]:
        """The shape of one example's outputs, before they are flattened."""
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            return tuple(self.outputs(examples.part(0, 1).clone()).shape[1:])

    def find_features(self, examples: Inputs) -> None:
        """Marks the sites with their axes of features."""
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            example = examples.part(0, 1)
            watched = partial(watched_values, self.module, example, self._forward)
            self.sites = marked_features(self.module, self.sites, watched)

    def unread(self, sites: Sequence[Site], examples: Inputs) -> str | None:
        """A warning of struck parameters that the outputs do not depend on; see ``check_read``."""
        one = examples.part(0, 1)
        with torch.no_grad(), self._explaining_failures(examples), self._drawing.undone():
            return check_read(
                sites,
                self.tensors,
                lambda tensors: self.readout(self.raw(one.clone(), tensors), one.targets),
                lambda tensors: self.readout(self.raw(examples.clone(), tensors), examples.targets),
            )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """For the time of work: outside of inference mode, on parameters that stay what they are.

        What is interrupted leaves a twin behind that is not used again.

        Raises:
            ModelError: somebody has written to the parameters meanwhile.
        """
        try:
            with torch.inference_mode(False), without_autocast(), self._drawing.undone():
                yield
        except BaseException as error:
            if not isinstance(error, Exception):
                self._twins.forget()
            raise
        self._check_unchanged()

    def has_changed(self) -> bool:
        """Whether passes have changed what was not known to change, and is put back from now on.

        What was computed before may depend on it, and has to be computed again.
        """
        return self._twin.has_changed()

    def with_dtype(self, dtype: torch.dtype) -> IsolatedModel:
        """The same model, computed in another floating-point type."""
        model = self.with_own_twins()
        model.dtype, model._pair = dtype, self._pair.to(self.device, dtype)
        return model

    def of_outputs(self, chosen: tuple[int, ...]) -> IsolatedModel:
        """The same model, of whose outputs these are read."""
        model = self.with_own_twins()
        model.readout = replace(self.readout, chosen=chosen)
        model.clean = self.clean[:, list(chosen)]
        return model

    def with_own_twins(self) -> IsolatedModel:
        """The same model, whose modules may be changed for good."""
        self.original  # noqa: B018 - loaded once for both
        model = object.__new__(type(self))
        model.__dict__.update(self.__dict__)
        model._renew()
        return model

    # Pickled: the model as bytes, which are read where it is first run.

    def __getstate__(self) -> dict[str, Any]:
        left = ("_twins", "_loading", "_watched", "_changing", "_original")
        state = {name: value for name, value in self.__dict__.items() if name not in left}
        if self._pickled is not None:
            return state
        with self.at_work(), torch.no_grad():
            expected = self.outputs(self._pair.clone())
        try:
            state["_pickled"] = pickle.dumps((self.original, expected))
        except Exception as error:
            remedy = "define its classes, functions and hooks at the top of a module, no lambdas"
            if isinstance(self.original, torch.fx.GraphModule):
                remedy = "give the model that was exported or traced"
            raise ModelError(
                "model: cannot be sent to another process, as it does not pickle "
                f"({described(error)}); {remedy}, or run threads instead of processes "
                "(ThreadPoolExecutor)"
            ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._changing, self._watched, self._original = set(), {}, None
        self._renew()

    @torch.inference_mode(False)
    def _load(self, pickled: bytes) -> None:
        """Makes the model of its bytes, and sees that it computes the same.

        Raises:
            ModelError: its classes are not found, or its pickle leaves something out.
        """
        try:
            self._original, expected = pickle.loads(pickled)
        except Exception as error:
            raise ModelError(
                f"model: cannot be read in this process ({described(error)}); its classes and "
                "functions have to be importable here"
            ) from error
        self._twin.looks = True  # for what its passes change
        with torch.no_grad(), self._explaining_failures(self._pair), self._drawing.undone():
            found = self.outputs(self._pair.clone())
        self._twin.looks = False
        if (off := _distance(expected, found, self.dtype)) is not None:
            raise ModelError(
                "model: what comes out of its pickle gives other outputs than the model (by "
                f"{off:.2g}): its __reduce__ or __getstate__ leaves something out, or it reads "
                "variables of its module; hold those in the model, or run threads instead of "
                "processes (ThreadPoolExecutor)"
            )
        self._watched = self._versions(self._original)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _distance(wanted: Tensor, found: Tensor, dtype: torch.dtype) -> float | None:
    """By how much outputs differ from those wanted, if by more than rounding explains."""
    wanted, found = wanted.double(), found.double()
    finite = torch.isfinite(wanted)
    off = (found - wanted)[finite].abs()
    largest = wanted[finite].abs().amax() if finite.any() else wanted.new_zeros(())
    is_close = bool((off <= rounding_slack(dtype) * largest).all())
    return None if is_close else float(off.amax())
