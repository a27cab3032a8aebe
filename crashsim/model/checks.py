"""Checks of a model and of its outputs before anything is analysed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crashsim.errors import ArgumentError, ModelError
from crashsim.model.inputs import Inputs, can_compute, plain
from crashsim.model.multiplied.stored_words import stored_by_subclass
from crashsim.model.twins.protected_module import ProtectedModule
from crashsim.noticing import notice


def check_module(model: object) -> nn.Module:
    """The model, if it is one; else ArgumentError."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; give the network "
            "itself"
        )
    return model


def check_holds_numbers(model: nn.Module) -> None:
    """Raises ModelError for weights without numbers: lazy, or on the meta device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"model: {name!r} has no shape yet; run the lazy model on data first")
        if tensor.is_meta:
            raise ModelError(
                f"model: {name!r} is on the meta device and holds no numbers; load its weights "
                "(to_empty, then load_state_dict)"
            )


def check_can_be_trained(model: nn.Module) -> None:
    """Raises ModelError for weights made in inference mode, which have no derivative."""
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ModelError(
                f"model: {name!r} was made in torch.inference_mode, where nothing can be trained; "
                "build the model outside of it, or take a copy of it there (copy.deepcopy)"
            )


def check_model(model: object) -> None:
    """Checks what can be checked of a model before it is run.

    Raises:
        ArgumentError: it is not a module.
        ModelError: it cannot be analysed as it is.
    """
    model = check_module(model)
    _check_not_scripted(model)
    check_holds_numbers(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not can_compute(tensor.dtype):
            raise ModelError(
                f"model: {name!r} is stored as {tensor.dtype}, in which torch computes no layers; "
                "convert the model, with model.float() or model.bfloat16()"
            )
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not _is_finite(name, tensor):
            raise ModelError(
                f"model: parameter {name!r} holds NaN or infinity; load or train it again"
            )
    random = [name or "the model" for name, m in model.named_modules() if _depends_on_mode(m)]
    if random:
        raise ModelError(
            f"model: in training mode, where {random[0]!r} ({len(random)} such layers) is random "
            "or depends on the batch; call model.eval() first"
        )
    exported = isinstance(model, torch.fx.GraphModule)  # whose flag says nothing and stays
    if model.training and not exported and any(True for _ in model.children()):
        notice(
            "model: in training mode; no layer of it behaves differently there, so the result "
            "stands, but call model.eval() to be sure",
            stacklevel=4,
        )


def _is_finite(name: str, tensor: Tensor) -> bool:
    """Whether a parameter holds numbers; ModelError for one that does not let itself be read."""
    stored = stored_by_subclass(tensor)
    try:
        return bool(torch.isfinite(plain(tensor) if stored is None else stored[0]).all())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        if type(tensor) in (Tensor, nn.Parameter):
            raise
        raise ModelError(
            f"model: {name!r} is a {type(tensor).__name__}, which cannot be read as numbers; give "
            "the model before its weights were converted (for torchao: before quantize_)"
        ) from error


def _check_not_scripted(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{name!r} is of TorchScript, which" if name else "TorchScript"
            raise ModelError(
                f"model: {where} does not let faults in; give the module before torch.jit, or "
                "torch.export it"
            )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers that change where and how it runs, not what it computes.

    Of a protected model, the one that runs.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        elif isinstance(model, ProtectedModule):
            model = model.hardened
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` wraps the model or a part of it."""
    modules = list(model.modules())
    return any(
        "_orig_mod" in m._modules or getattr(m, "_compiled_call_impl", None) for m in modules
    )


def rounding_slack(dtype: torch.dtype) -> float:
    """How far two ways to compute the same numbers may differ, relative to the largest."""
    eps = torch.finfo(dtype).eps
    return float(min(30 * eps**0.75, max(8 * eps, 1e-3)))


def quantises_batches(model: nn.Module) -> bool:
    """Whether a layer rounds its input to steps that the largest number of the batch decides."""
    return any(".quantized.dynamic" in type(module).__module__ for module in model.modules())


def _depends_on_mode(module: nn.Module) -> bool:
    """True for a layer in training mode that is random or uses statistics of the batch."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return float(module.dropout) > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU) or (
        isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
    )


def dtype_of(model: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def check_outputs(call: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """The clean outputs (B, K), after the checks that only running the model can make.

    Args:
        call: the tensor that the model returns for some inputs.
        inputs: the examples.

    Raises:
        ModelError: the tensor is not of floating point with the batch first, is not finite, is
            random, or mixes the inputs of a batch.
    """
    pair = inputs.part(0, 1).repeat(2)
    first, second, alone = (call(x.clone()) for x in (inputs, inputs, pair))
    batch = len(inputs)
    if first.dim() == 0 or first.shape[0] != batch or first.numel() == 0:
        raise ModelError(
            f"model: returns shape {tuple(first.shape)} for {batch} inputs; "
            f"the first axis must be the batch, as in ({batch}, outputs)"
        )
    if not first.is_floating_point():
        raise ModelError(
            f"model: returns {first.dtype}; return real-valued outputs (logits), not classes"
        )
    mixed = alone.shape != (2, *first.shape[1:])
    first, second = first.reshape(batch, -1), second.reshape(batch, -1)
    if not torch.isfinite(first).all():
        bad = (~torch.isfinite(first)).any(1).nonzero().flatten().tolist()
        raise ModelError(
            f"model: its clean outputs are not finite (NaN or infinity) for inputs {bad[:5]}; "
            "look at the inputs' scale and the weights"
        )
    if not torch.equal(first, second):
        raise ModelError(
            "model: gives different outputs for the same inputs, so a change of output cannot "
            "be attributed to faults; call model.eval() or remove its randomness"
        )
    scale = first.abs().max() + 1e-30
    if mixed or (alone.reshape(2, -1) - first[:1]).abs().max() > 1e-2 * scale:
        raise ModelError(
            "model: an input's output depends on the other inputs of the batch; "
            "normalise with fixed statistics (eval mode with track_running_stats=True)"
        )
    return first
