"""Models by name: architecture specs, files, and factories in the user's own code."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.parameter import is_lazy

from crashsim.arguments import instance, one_of
from crashsim.arguments import path as file_path
from crashsim.errors import ArgumentError, CrashsimError, FileError, ModelError
from crashsim.files.architectures import Architecture, is_architecture, parse_architecture
from crashsim.files.checkpoints import PREFIX, read_checkpoint, shown
from crashsim.files.limits import check_file, check_size, most_bytes, read_text, size_on_disk
from crashsim.files.onnx_graphs.spec import onnx_spec
from crashsim.files.users_code import call_factory
from crashsim.model.checks import check_module
from crashsim.writing import check_writable, write_files

FORMAT = 1
Reset = Literal["subtract", "zero", "late-subtract", "late-zero"]
_COPIES = 4  # of its weights that a network takes, with what is computed of it
_DESCRIPTION = "description"  # of the weights' metadata: the digest of what they go with


@dataclass(frozen=True)
class NamedModel:
    """A loaded model, with its name and what is known about it.

    Attributes:
        name: as the user called it.
        model: in evaluation mode.
        architecture: if it was built from a spec.
        trained: False for a freshly initialised architecture.
        facts: what training recorded (data, accuracy, recipe).
        chip: the spiking chip, if the model is the rate curves of one (a NIR graph).
    """

    name: str
    model: nn.Module
    architecture: Architecture | None = None
    trained: bool = True
    facts: dict[str, Any] | None = None
    chip: Any = None


def save_model(
    path: str | Path, model: nn.Module, architecture: Architecture, facts: dict[str, Any]
) -> tuple[Path, Path]:
    """Writes ``PATH.safetensors`` (weights) and ``PATH.json`` (how to rebuild the network).

    Raises:
        FileError: they cannot be written.
        ArgumentError: an argument of another type.
    """
    check_module(model)
    instance("architecture", architecture, Architecture, "what parse_architecture returned")
    instance("facts", facts, dict, "a dictionary of plain data")
    check_model_path(path)
    weights, description = model_files(path)
    described = {"format": FORMAT, "architecture": str(architecture), "facts": facts}
    text = json.dumps(described, indent=1)
    content = save(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        {_DESCRIPTION: _digest(json.loads(text))},
    )
    # The weights first: should the program be killed between the two, what is there is not taken
    # for a model, since the weights say which description they go with.
    write_files("out", (weights, content), (description, text.encode()))
    return weights, description


def save_weights(path: str | Path, model: nn.Module) -> Path:
    """Writes ``PATH.safetensors``, the state dict of a model that code of the user's builds.

    Raises:
        FileError: it cannot be written.
        ModelError: the state holds more than tensors, as that of torch's integer layers does.
    """
    check_module(model)
    check_model_path(path)
    weights, _ = model_files(path)
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            raise ModelError(
                f"model: {name!r} of its state is {type(value).__name__}, which safetensors does "
                "not hold; save it in Python, where harden returns the network"
            )
    # Copies, since tied weights are written once for each name.
    write_files("out", (weights, save({k: v.detach().cpu().clone().contiguous()
                                       for k, v in state.items()})))  # fmt: skip
    return weights


def _digest(described: Any) -> str:
    """Of a description, however it is laid out."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def check_model_path(path: str | Path) -> None:
    """Raises FileError, before the work, where ``save_model`` could not write its files."""
    if not file_path("out", path).name:
        raise FileError(f"out={str(path)!r}: give the name of a file")
    for file in model_files(path):
        check_writable("out", file)


def model_files(path: str | Path) -> tuple[Path, Path]:
    """The weights and the description of the model that ``save_model`` writes to this path."""
    return _files_of(_stem(Path(path)))


def _files_of(stem: Path) -> tuple[Path, Path]:
    """Weights and description."""
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def load_model(
    spec: str,
    *,
    seed: int = 0,
    weights: str | None = None,
    reset: Reset | None = None,
    trusted: bool = False,
    graph: Mapping[str, Any] = MappingProxyType({}),
) -> NamedModel:
    """Loads the model that a name stands for: a spec, a file or a factory.

    Two of the forms run code: a factory, which is named as such, and a ``.pt2`` archive, which is
    loaded only where ``trusted`` says so. All others are read as data.

    Args:
        spec: an architecture (``64-100-50-10:sigmoid``, initialised from ``seed``); a model that
            ``crashsim train`` wrote (with or without its suffix); a ``torch.export`` archive
            (``.pt2``); a NIR graph (``.nir``); an ONNX file (``.onnx``, where need be with inputs
            that are always the same and lengths of axes, as ``vad.onnx:sr=16000,input=?x576``); a
            Hugging Face checkpoint on disk (``hf:FOLDER``, of safetensors); or
            ``package.module:factory`` or ``path.py:factory``, which imports the user's own code and
            calls it.
        seed: of the initialisation of an architecture.
        weights: a state dict for a factory's model or an architecture (``.safetensors``, or
            ``.pt``/``.pth`` without pickled code).
        reset: what a spike leaves behind, where a NIR graph does not say.
        trusted: a ``.pt2`` archive may run the code that is in it. It changes nothing for the
            other forms.
        graph: how a NIR graph is run: ``steps``, ``dt``, ``exporter``, ``start``, as
            ``crashsim.chip.nir.read_chip`` takes them.

    Raises:
        FileError: a file is missing or damaged, would take too much memory (see
            ``crashsim.files.limits``) or is not trusted, or the name stands for nothing.
        ModelError: the user's code fails.
        ArgumentError: an architecture makes no sense or is too large, or a factory needs arguments
            or returns no module.
    """
    instance("model", spec, str, "a name as a text")
    if weights is not None:
        file_path("weights", weights)
        weights = os.fspath(weights)  # as it was given: an empty name is not a folder
    instance("trusted", trusted, bool, "True or False")
    if reset is not None:
        one_of("reset", reset, get_args(Reset))
    path = Path(spec)
    is_own = _is_own(path)
    onnx = onnx_spec(spec)
    is_checkpoint = spec.startswith(PREFIX)
    if weights is not None and (is_own or onnx or is_checkpoint or path.suffix in (".nir", ".pt2")):
        raise ArgumentError(
            f"weights={weights!r}: {spec!r} has weights of its own; give them with an architecture "
            "or a factory"
        )
    for option, value in {"reset": reset, **graph}.items():
        if value is not None and not spec.endswith(".nir"):
            raise ArgumentError(f"{option}={value!r}: only for a .nir file, and {spec!r} is none")
    if is_architecture(spec):
        architecture = parse_architecture(spec)
        built = architecture.build(seed)
        if weights is not None:
            _load_state(built, weights)
        return NamedModel(spec, built, architecture, trained=weights is not None)
    if path.suffix == ".nir":
        from crashsim.chip.nir import read_chip

        check_file(f"model={spec!r}", path, "give a .nir file")
        chip, rates = read_chip(path, reset, most_bytes=most_bytes(), **graph)
        return NamedModel(spec, rates, chip=chip)
    if onnx is not None:
        from crashsim.files.onnx_graphs.reading import read_onnx

        return NamedModel(spec, read_onnx(onnx.path, onnx.fixed, onnx.sizes))
    if is_checkpoint:
        return NamedModel(spec, read_checkpoint(spec))
    if path.suffix == ".pt2":
        return NamedModel(spec, _load_exported(spec, trusted=trusted))
    if is_own:
        return _load_own(spec, _stem(path))
    if ":" in spec:
        model = call_factory(spec)
        if weights is not None:
            _load_state(model, weights)
        return NamedModel(spec, model)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ArgumentError(
            f"model={spec!r}: such a file holds weights or pickled code, not a network; "
            "name the code that builds it, as path.py:factory, and pass the file as --weights; "
            "or save the model with torch.export.save as .pt2, which is code too (--trust)"
        )
    raise FileError(
        f"model={spec!r} is neither an architecture ('64-100-50-10:sigmoid'), nor an existing "
        "model file (from `crashsim train`, .onnx, .nir or .pt2), nor 'hf:FOLDER', nor "
        "'path.py:factory'"
    )


def _is_own(path: Path) -> bool:
    """Whether ``save_model`` wrote it; an architecture's or factory's name never stands for one."""
    if not path.name or ":" in path.name or is_architecture(str(path)):
        return False
    return os.path.exists(_files_of(_stem(path))[1])


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def _load_own(spec: str, stem: Path) -> NamedModel:
    weights, description = _files_of(stem)
    remedy = "give a model that `crashsim train` wrote"
    try:
        described = json.loads(
            read_text(f"model={spec!r}: {description.name}", description, remedy)
        )
        if described["format"] != FORMAT:
            raise FileError(f"model={spec!r}: format {described['format']!r} is not {FORMAT}")
        architecture = parse_architecture(described["architecture"])
    except FileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"model={spec!r}: {description.name} is not a model description, as `crashsim train` "
            f"writes it ({type(error).__name__}: {error})"
        ) from error
    _check_weights_of(architecture, spec, weights)
    model = architecture.build()
    _load_state(model, str(weights))
    _check_pair(spec, weights, described)
    return NamedModel(spec, model, architecture, facts=described.get("facts"))


def _check_weights_of(architecture: Architecture, spec: str, weights: Path) -> None:
    """Raises FileError, before the network is made, unless the file holds just its weights.

    A description is data: it may ask for any network, whoever wrote it.
    """
    held = size_on_disk(weights) if os.path.isfile(weights) else 0
    what = f"model={spec!r}: a network of {str(architecture)!r}"
    allowed = max(most_bytes(), _COPIES * held)
    check_size(what, _COPIES * architecture.nbytes, "give a smaller one", allowed=allowed)
    check_file(f"weights: {str(weights)!r}", weights, f"model={spec!r} is its description alone")
    try:
        with safe_open(weights, "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _no_state_dict(str(weights), error) from error
    wanted = architecture.weights
    for name in sorted({*wanted, *stored}):
        if stored.get(name) != wanted.get(name):
            raise FileError(
                f"weights: {str(weights)!r} does not fit the network ({name} is of shape "
                f"{stored.get(name)} in the file and {wanted.get(name)} in "
                f"{str(architecture)!r}); give the weights of this very network"
            )


def _check_pair(spec: str, weights: Path, described: Any) -> None:
    """FileError where the weights go with another description; those of others do not say."""
    with safe_open(weights, "pt") as file:
        digest = (file.metadata() or {}).get(_DESCRIPTION)
    if digest is not None and digest != _digest(described):
        raise FileError(
            f"model={spec!r}: {weights.name} does not go with the description beside it (their "
            "writing was cut short, or one of the two was changed); write the model again, or "
            f"give its architecture with --weights {str(weights)!r}"
        )


def _load_state(model: nn.Module, path: str) -> None:
    """Loads weights without ever running code from the file.

    ``.pt`` and ``.pth`` files are pickles, of which torch's restricted unpickler
    (``weights_only``) takes tensors and plain containers alone.
    """
    check_file(f"weights: {path!r}", path, "give a state dict (.safetensors, .pt or .pth)")
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    try:
        if Path(path).suffix == ".safetensors":
            allowed = 2 * own + most_bytes()
            remedy = "give the weights of this very network"
            check_size(f"weights: {path!r}", os.path.getsize(path), remedy, allowed=allowed)
            state = load_file(path)
        else:
            _check_unpacked(f"weights: {path!r}", path, 2 * own)
            state = torch.load(path, weights_only=True, map_location="cpu")
    except CrashsimError:
        raise
    except Exception as error:  # torch.load refuses pickled code with pickle's own exceptions
        raise _no_state_dict(path, error) from error
    _check_names(model, state, path)
    try:
        model.load_state_dict(state, strict=False)  # tied weights are stored once
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise FileError(
            f"weights: {path!r} does not fit the network ({_line(error, 3)}); give the weights of "
            "this very network"
        ) from error


def _check_names(model: nn.Module, state: Any, path: str) -> None:
    """Raises FileError where a state dict lacks what a model has, has more, or other shapes."""
    if not isinstance(state, Mapping):
        raise FileError(
            f"weights: {path!r} does not fit the network (it holds {type(state).__name__}, no "
            "weights by name); save model.state_dict(), or use safetensors"
        )
    own = dict(model.state_dict(keep_vars=True))
    held = {id(tensor) for name, tensor in own.items() if name in state}
    missing = [n for n, t in own.items() if n not in state and id(t) not in held]
    more = [str(name) for name in state if name not in own]
    wrong = [
        f"{n}: {tuple(t.shape)} in the file and {tuple(own[n].shape)} in the network"
        for n, t in state.items()
        if n in own and getattr(t, "shape", None) is not None and hasattr(own[n], "shape")
        and t.shape != own[n].shape and not is_lazy(own[n])
    ]  # fmt: skip
    parts = [
        f"{what}: {len(names)} ({shown(names)})"
        for names, what in (
            (missing, "Missing key(s)"), (more, "Unexpected key(s)"), (wrong, "Other shapes"),
        )
        if names
    ]  # fmt: skip
    if parts:
        raise FileError(
            f"weights: {path!r} does not fit the network: {'; '.join(parts)}; give the weights of "
            "this very network"
        )


def _no_state_dict(path: str, error: Exception) -> FileError:
    return FileError(
        f"weights: {path!r} is not a plain state dict ({_line(error)}); save "
        "model.state_dict(), or use safetensors"
    )


def _check_unpacked(subject: str, path: str | Path, more: int = 0) -> None:
    """Raises FileError where the members of a zip archive would take too much memory.

    They may take as much as the file does on disk, or the usual limit, and ``more`` bytes.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    allowed = max(most_bytes(), size_on_disk(path)) + more
    check_size(f"{subject}, unpacked,", unpacked, "give a smaller one", allowed=allowed)


def _line(error: Exception, lines: int = 1) -> str:
    """The first lines of what torch says, in one; its kind, where it says nothing."""
    said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    more = " ..." if len(said) > lines else ""
    return " ".join(said[:lines]).split(". ")[0] + more if said else type(error).__name__


def _load_exported(spec: str, *, trusted: bool) -> nn.Module:
    """An archive of torch.export, which is code: torch evaluates and unpickles what it holds."""
    subject = f"model={spec!r}"
    check_file(subject, spec, "give a file of torch.export.save")
    if not trusted:
        raise FileError(
            f"{subject}: loading a .pt2 archive can run any code that is in it, as running a "
            "program would; if you trust whoever made it, say so with --trust (trusted=True in "
            "Python); otherwise name code of your own that builds the network, as path.py:factory, "
            "and give its weights as .safetensors"
        )
    try:
        _check_unpacked(subject, spec)
        with warnings.catch_warnings():  # torch's own, of what it will change in loading
            warnings.simplefilter("ignore", FutureWarning)
            return torch.export.load(spec).module()
    except CrashsimError:
        raise
    except Exception as error:  # a damaged archive fails in many ways inside torch
        raise FileError(f"{subject} is not a torch.export archive ({_line(error)})") from error
