"""What a shell completes: names that options take. Nothing heavy loads for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

# Lists of their own, since what they are read from takes seconds to load; a test compares them.
FAULTS = (
    "neuron-crash", "weight-crash", "stuck-at", "sign-flip", "bit-flip", "bit-stuck", "gain-noise",
    "additive-noise",
)  # fmt: skip
METRICS = (
    "accuracy", "top-5", "error-rate", "class-change", "sdc-1", "sdc-5", "due", "cross-entropy",
    "perplexity", "mse", "mae", "mean-iou",
)  # fmt: skip
ACTIVATIONS = (
    "elu", "gelu", "leaky-relu", "linear", "relu", "sigmoid", "silu", "softplus", "tanh",
)  # fmt: skip
SCHEMES = (
    "secded", "parity", "tmr", "duplication", "clip", "clip-weights", "spares", "scrubbing",
)  # fmt: skip
PARTS = (
    "layer", "bit", "field", "channel", "neuron", "step", "word", "row", "column", "fault",
)  # fmt: skip
METHODS = (
    "exact", "norm", "absolute", "taylor", "single", "pairs", "mean-point-taylor",
    "mean-point-curvature", "mean-point-single", "chebyshev", "chernoff", "saddlepoint",
    "nearest-rivals", "surrogate-law", "single-law", "word-strata", "remainder", "linear-exact",
    "certificate", "certified-sampling", "monte-carlo", "importance-sampling", "word-importance",
    "hardware",
)  # fmt: skip
SINGLE_FAULTS = (
    "dead-neuron", "saturated-neuron", "dead-synapse", "saturated-synapse", "inverted-synapse",
    "top-bit-flip",
)  # fmt: skip
CHIP_FAULTS = (
    "dead-neuron", "stuck-firing", "stuck-neuron", "mismatch", "leak-variation",
    "refractory-variation", "core-death", "dead-synapse", "stuck-synapse", "perturbed-synapse",
    "bit-flip", "row-death", "column-death", "release-failure", "weight-bits", "read-noise",
    "adc-bits", "levels", "conductance-variation", "stuck-cells", "drift", "pcm", "ir-drop",
)  # fmt: skip
SITES = ("hidden", "input", "weights")
DATA = ("digits", "digits-images", "mnist:", "mnist-images:")
_EXAMPLES = ("64-100-10:relu", "64-100-50-10:sigmoid")


def _starting(known: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in known if name.startswith(incomplete)]


def _files(incomplete: str, *endings: str) -> list[str]:
    """Files and folders that a text may become, such as ``net.n`` of ``net.nir``."""
    start = Path(incomplete or ".")
    folder = start if not incomplete or incomplete.endswith("/") else start.parent
    try:
        there = sorted(folder.iterdir())
    except OSError:
        return []
    named = (f"{path}/" if path.is_dir() else str(path) for path in there)
    return [
        name
        for name in named
        if name.startswith(incomplete) and name.endswith(("/", *endings)) and name[0] != "."
    ]


def model(incomplete: str) -> list[str]:
    """An architecture, whose activation follows the colon, or a file."""
    sizes, colon, activation = incomplete.partition(":")
    if colon and sizes.replace("-", "").isdigit():
        return [f"{sizes}:{name}" for name in _starting(ACTIVATIONS, activation)]
    files = _files(incomplete, ".json", ".nir", ".pt2", ".onnx", ".py")
    return [*_starting(_EXAMPLES, incomplete), *files]


def data(incomplete: str) -> list[str]:
    """A data set, or a file of arrays."""
    return [*_starting(DATA, incomplete), *_files(incomplete, ".npy", ".npz")]


def fault(incomplete: str) -> list[str]:
    """``SITES=KIND``: a kind of fault, behind the sites if there are any."""
    sites, equals, kind = incomplete.rpartition("=")
    if ":" in sites:  # the values of a fault
        return []
    before = f"{sites}{equals}"
    return [before + name for name in _starting(FAULTS, kind)]


def device(incomplete: str) -> list[str]:
    """A device whose faults are known."""
    import tomllib
    from importlib.util import find_spec

    spec = find_spec("crashsim_hardware")  # which does not load it
    if spec is None or spec.origin is None:
        return []
    file = Path(spec.origin).parent / "faults" / "devices.toml"
    return _starting(tuple(tomllib.loads(file.read_text(encoding="utf-8"))), incomplete)


def _of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A name of these; or several, with commas between."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in _starting(known, last)]

    return complete


# By the name of the parameter.
COMPLETIONS: Mapping[str, Callable[[str], list[str]]] = {
    "model": model,
    "models": model,
    "architecture": model,
    "inputs": data,
    "data": data,
    "train": data,
    "fault": fault,
    "device": device,
    "chip_fault": _of(CHIP_FAULTS),
    "sites": _of(SITES),
    "metric": _of(METRICS),
    "methods": _of(METHODS),
    "schemes": _of(SCHEMES),
    "by": _of(PARTS),
    "single_fault": _of(SINGLE_FAULTS),
}
