"""What kind of layer a module is: an activation function, linear or convolutional, recurrent.

Torch's quantised layers count by name: they are imported where a model has some, which takes time.
"""

from __future__ import annotations

from torch import nn

# Modules that are activation functions: their outputs are what hardware calls a neuron's output.
_NOT_NEURONS = (
    nn.MultiheadAttention,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.LogSoftmax,
)
ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if not issubclass(getattr(nn.modules.activation, name), _NOT_NEURONS)
)
AFFINE = (nn.Linear, nn.modules.conv._ConvNd)
_QUANTISED = "torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized."
_QUANTISED_ACTIVATIONS = frozenset(
    "ReLU6 Hardswish ELU LeakyReLU Sigmoid PReLU LinearReLU LinearLeakyReLU LinearTanh ConvReLU1d "
    "ConvReLU2d ConvReLU3d ConvAddReLU2d BNReLU2d BNReLU3d".split()
)
_QUANTISED_AFFINE = frozenset(
    ["Linear", *(f"{conv}{n}d" for conv in ("Conv", "ConvTranspose") for n in (1, 2, 3))]
)


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a layer of torch's for quantised tensors, or with quantised weights."""
    return type(module).__module__.startswith(_QUANTISED)


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a layer of steps, which end with an activation function inside."""
    return isinstance(module, nn.RNNBase) or _is_dynamic(module, "LSTM", "GRU")


def is_recurrent_cell(module: nn.Module) -> bool:
    """Whether a module is one such step."""
    cells = "LSTMCell", "GRUCell", "RNNCell"
    return isinstance(module, nn.RNNCellBase) or _is_dynamic(module, *cells)


def _is_dynamic(module: nn.Module, *names: str) -> bool:
    kind = type(module)
    return ".quantized.dynamic." in kind.__module__ and kind.__name__ in names


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function, or a quantised layer that ends in one."""
    if is_quantised(module):
        return type(module).__name__ in _QUANTISED_ACTIVATIONS
    return isinstance(module, ACTIVATION_MODULES)


def is_affine(module: nn.Module) -> bool:
    """Whether a module is a linear or convolutional layer."""
    if is_quantised(module):
        return type(module).__name__ in _QUANTISED_AFFINE
    return isinstance(module, AFFINE)


def calls_no_activations(module: nn.Module) -> bool:
    """Whether the activation functions that a module calls are a part of what it computes.

    Its own output is what hardware calls a neuron's.
    """
    return is_activation(module) or is_recurrent(module) or is_recurrent_cell(module)
