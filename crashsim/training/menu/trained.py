"""One training of a user's network in one way: from the same start, with what it took counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.arguments import shown
from crashsim.errors import ArgumentError, ModelError
from crashsim.files.users_code import reported_as_the_users
from crashsim.injection.flops import Operations
from crashsim.model.checks import check_can_be_trained, check_module
from crashsim.model.inputs import BatchAxis, Inputs
from crashsim.model.nested import leaves
from crashsim.model.sites.passes import real_leaves
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.training.menu.ways import FaultsBySite, Struck, Way

Start = nn.Module | Callable[[], nn.Module]
Train = Callable[..., Any]


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Attributes:
        model: in evaluation mode.
        passes, examples: of forward passes in training mode; 0 where they were not seen.
        effort: how much longer it trained than usual.
    """

    model: nn.Module
    passes: int
    examples: int
    effort: float


@dataclass(frozen=True)
class Trainer:
    """Trains a user's network anew, from the same start each time.

    Args:
        start: a module, which is copied, or a function that returns one.
        train: the user's function: ``train(model)``, ``train(model, penalty)``, and perhaps
            ``effort=`` besides. It trains the model in place, or returns another.
        seed: of torch's global generator within a training, which is put back afterwards.
        batch_axis, steps_axis: as of ``FaultSpace``.
    """

    start: Start
    train: Train
    seed: int
    batch_axis: BatchAxis = 0
    steps_axis: StepsAxis | None = None

    @property
    def takes_penalty(self) -> bool:
        return self._takes(2, "penalty")

    @property
    def takes_effort(self) -> bool:
        return self._takes(None, "effort")

    def _takes(self, position: int | None, name: str) -> bool:
        try:
            parameters = inspect.signature(self.train).parameters.values()
        except (TypeError, ValueError):
            return False
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if position is not None and len(by_place) >= position:
            return by_place[position - 1].name != "effort"
        return any(p.name == name for p in parameters) or (
            position is not None and any(p.kind is p.VAR_POSITIONAL for p in parameters)
        )

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Torch's global generators at the seed; they are put back afterwards."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(self.seed)
            yield

    def fresh(self) -> nn.Module:
        """The network before it trains; within ``seeded``.

        Raises:
            ModelError: it cannot be copied, or the factory fails.
            ArgumentError: the factory returns something else.
        """
        if isinstance(self.start, nn.Module):
            return copied(self.start)
        with reported_as_the_users("model=<factory>", "the factory"):
            model = self.start()
        return check_module(model)

    @torch.inference_mode(False)
    def trained(self, parts: tuple[Way, ...], faults: FaultsBySite, effort: float = 1.0) -> Trained:
        """A network trained in these ways.

        Raises:
            ModelError: the user's code fails, trains another model, or diverges.
            CrashsimError: a way cannot be taken with this model and these faults.
        """
        with self.seeded(), torch.enable_grad():
            model = self.fresh()
            check_can_be_trained(model)
            model.train()
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            started = _versions(self.start)
            with ExitStack() as stack:
                seen = stack.enter_context(_counted(model))
                struck = self.struck(model, parts, faults, stack)
                penalty = _Penalty(struck)
                returned = self._call(model, penalty, effort)
                self._check_taken(parts, struck, penalty)
        if _versions(self.start) != started:
            raise ModelError(
                "train: changed the model that was given to harden; train the model that the "
                "function is given, a copy, with an optimiser made inside from model.parameters()"
            )
        if isinstance(returned, nn.Module) and returned is not model:
            model = returned
        else:
            _check_changed(model, before)
        for name, parameter in model.named_parameters():
            parameter.grad = None
            if parameter.is_floating_point() and not torch.isfinite(parameter).all():
                raise ModelError(
                    f"train: diverged ({name!r} is not finite); give a smaller learning rate, a "
                    "weaker penalty or a lower rate of faults"
                )
        # A copy has neither the optimiser's hooks nor the graphs of the last pass.
        return Trained(copied(model).eval(), seen.passes, seen.examples, effort)

    def struck(
        self, model: nn.Module, parts: tuple[Way, ...], faults: FaultsBySite, stack: ExitStack
    ) -> list[Struck]:
        """Attaches what the ways need to a model, until the stack closes.

        Raises:
            ModelError: the model takes the batch on another axis than the first.
        """
        if self.batch_axis != 0 and any(part.attaches for part in parts):
            raise ModelError(
                f"batch_axis={self.batch_axis!r}: while a model trains, faults are attached to one "
                "that takes the batch first; wrap it in a module that does, and turns its inputs"
            )
        return [
            stack.enter_context(part.training(model, faults, self.seed, self.steps_axis))
            for part in parts
            if part.trains
        ]

    def _call(self, model: nn.Module, penalty: _Penalty, effort: float) -> Any:
        given: list[Any] = [model, penalty] if self.takes_penalty else [model]
        more = {"effort": effort} if self.takes_effort else {}
        try:
            inspect.signature(self.train).bind(*given, **more)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"train={shown(self.train)}: cannot be called as train(model, penalty) or "
                f"train(model) ({error}); give a function that can"
            ) from error
        with reported_as_the_users("train", "the training function"):
            return self.train(*given, **more)

    def _check_taken(self, parts: tuple[Way, ...], struck: list[Struck], penalty: _Penalty) -> None:
        """Raises ModelError where a way had no effect on the training."""
        if any(one.penalty is not None for one in struck) and not penalty.calls:
            raise ModelError(
                "train: takes no penalty, or never called it; write train(model, penalty), and add "
                "penalty(outputs) to the loss, outputs being what model(x) returned"
            )
        if any(one.sites is not None and not one.sites() for one in struck):
            raise ModelError(
                "train: no faults struck, since the model was not called as model(x) in training "
                "mode; call it so, not model.forward(x), and uncompiled"
            )


class _Penalty:
    """What users add to their loss: the penalties of all ways together, of the model's outputs."""

    def __init__(self, struck: list[Struck]) -> None:
        self._terms = [one.penalty for one in struck if one.penalty is not None]
        self.calls = 0

    def __call__(self, output: Tensor) -> Tensor:
        self.calls += 1
        total = torch.zeros((), device=output.device) if isinstance(output, Tensor) else 0.0
        for term in self._terms:
            total = total + term(output)
        return total


@dataclass
class _Seen:
    passes: int = 0
    examples: int = 0


@contextmanager
def _counted(model: nn.Module) -> Iterator[_Seen]:
    """Counts the passes of a model in training mode."""
    seen = _Seen()

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        seen.passes += 1
        tensors = [value for _, value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        seen.examples += len(tensors[0]) if tensors and tensors[0].dim() else 0

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def copied(model: nn.Module) -> nn.Module:
    """A copy; of values that a pass has left behind, such as membranes, without their graphs.

    Raises:
        ModelError: torch cannot copy it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for _, value in leaves([*module._buffers.values(), *vars(module).values()]):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"model: cannot be copied ({error}); give a function that builds it anew instead"
        ) from error


def _versions(start: Start) -> list[int]:
    """Of each parameter of a module, how often it was changed in place."""
    if not isinstance(start, nn.Module):
        return []
    return [-1 if p.is_inference() else p._version for p in start.parameters()]


def _check_changed(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = dict(model.named_parameters())
    same = all(n in after and torch.equal(after[n].detach(), old) for n, old in before.items())
    if before and same and len(after) == len(before):
        raise ModelError(
            "train: left every parameter of the model that it was given as it was; train that "
            "model, with an optimiser made inside from model.parameters(), or return the one that "
            "was trained"
        )


def operations_of_training(
    trainer: Trainer, parts: tuple[Way, ...], faults: FaultsBySite, few: Inputs
) -> float | None:
    """Operations of one example in training: forward, backward, and what the ways add.

    None where they cannot be counted.
    """
    with trainer.seeded(), torch.enable_grad():
        model = trainer.fresh().train()
        with ExitStack() as stack:
            struck = trainer.struck(model, parts, faults, stack)
            penalty = _Penalty(struck)
            inputs = few.to(*_place_of(model))
            inputs.clone().call(model)  # in which sites are looked for
            counting = Operations()
            with counting:
                output = inputs.clone().call(model)
                loss = penalty(output) if isinstance(output, Tensor) else 0.0
                for value in real_leaves(output):
                    loss = loss + value.float().square().mean() if value.requires_grad else loss
                torch.as_tensor(loss).backward()
    return counting.total / len(few) or None


def operations_of_inference(model: nn.Module, few: Inputs) -> float | None:
    """Operations of one example through a model. None where they cannot be counted."""
    counting = Operations()
    with torch.no_grad(), counting:
        few.to(*_place_of(model)).clone().call(copied(model))
    return counting.total / len(few) or None


def stored_bits(model: nn.Module) -> int:
    """Bits of a model's parameters and buffers, each memory once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() * 8 for t in tensors.values())


def _place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.get_default_dtype()
