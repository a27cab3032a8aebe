"""Models by name: architecture specs, files, and factories in the user's own code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from crashsim.architectures import Architecture, is_architecture, parse_architecture
from crashsim.arguments import instance, one_of
from crashsim.arguments import path as file_path
from crashsim.checks import check_module
from crashsim.errors import ArgumentError, FileError
from crashsim.users_code import call_factory
from crashsim.writing import check_writable, write_files

FORMAT = 1
_DESCRIPTION = "description"  # of the weights' metadata: the digest of what they go with
# Members of an export archive that are read as text.
_EXPORT_MARKS = {"archive_format", "archive_version", "byteorder", "version", "serialization_id"}


@dataclass(frozen=True)
class NamedModel:
    """A model with what is known about it.

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
    reset: Literal["subtract", "zero"] | None = None,
) -> NamedModel:
    """The model that a name stands for.

    Args:
        spec: an architecture (``64-100-50-10:sigmoid``, initialised from ``seed``); a model that
            ``crashsim train`` wrote (with or without its suffix); a ``torch.export`` archive
            (``.pt2``); a NIR graph (``.nir``); or ``package.module:factory`` or
            ``path.py:factory``, which imports the user's own code and calls it.
        seed: of the initialisation of an architecture.
        weights: a state dict for a factory's model or an architecture (``.safetensors``, or
            ``.pt``/``.pth`` without pickled code).
        reset: what a spike leaves behind, where a NIR graph does not say.

    Raises:
        FileError: a file is missing or damaged, or the name stands for nothing.
        ModelError: the user's code fails.
        ArgumentError: an architecture makes no sense or is too large, or a factory needs arguments
            or returns no module.
    """
    instance("model", spec, str, "a name as a text")
    if weights is not None:
        file_path("weights", weights)
        weights = os.fspath(weights)  # as it was given: an empty name is no folder
    if reset is not None:
        one_of("reset", reset, ("subtract", "zero"))
    path = Path(spec)
    is_own = _is_own(path)
    if weights is not None and (is_own or path.suffix in (".nir", ".pt2")):
        raise ArgumentError(
            f"weights={weights!r}: {spec!r} has weights of its own; give them with an architecture "
            "or a factory"
        )
    if reset is not None and not spec.endswith(".nir"):
        raise ArgumentError(f"reset={reset!r}: only for a .nir file, and {spec!r} is none")
    if is_architecture(spec):
        architecture = parse_architecture(spec)
        built = architecture.build(seed)
        if weights is not None:
            _load_state(built, weights)
        return NamedModel(spec, built, architecture, trained=weights is not None)
    if path.suffix == ".nir":
        from crashsim.nir import read_chip

        chip, rates = read_chip(path, reset)
        return NamedModel(spec, rates, chip=chip)
    if path.suffix == ".pt2":
        return NamedModel(spec, _load_exported(path))
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
            "or save the model with torch.export.save as .pt2"
        )
    raise FileError(
        f"model={spec!r} is neither an architecture ('64-100-50-10:sigmoid'), nor an existing "
        "model file (from `crashsim train`, or .pt2), nor 'path.py:factory'"
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
    try:
        described = json.loads(description.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise FileError(f"model={spec!r}: format {described['format']!r} is not {FORMAT}")
        architecture = parse_architecture(described["architecture"])
    except FileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"model={spec!r}: {description.name} is no model description, as `crashsim train` "
            f"writes it ({type(error).__name__}: {error})"
        ) from error
    model = architecture.build()
    _load_state(model, str(weights))
    _check_pair(spec, weights, described)
    return NamedModel(spec, model, architecture, facts=described.get("facts"))


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
    """Loads weights without ever running code from the file."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise FileError(f"weights: {path!r} {what}; give a state dict (.safetensors, .pt or .pth)")
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load refuses pickled code with pickle's own exceptions
        raise FileError(
            f"weights: {path!r} is not a plain state dict ({_line(error)}); save "
            "model.state_dict(), or use safetensors"
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise FileError(
            f"weights: {path!r} does not fit the network ({_line(error, 3)}); give the weights of "
            "this very network"
        ) from error


def _line(error: Exception, lines: int = 1) -> str:
    """The first lines of what torch says, in one; its kind, where it says nothing."""
    said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    more = " ..." if len(said) > lines else ""
    return " ".join(said[:lines]).split(". ")[0] + more if said else type(error).__name__


def _load_exported(path: Path) -> nn.Module:
    if not os.path.exists(path):
        raise FileError(f"model={str(path)!r} does not exist; give a file of torch.export.save")
    _refuse_code(path)
    try:
        with warnings.catch_warnings():  # torch's own, of what it will change in loading
            warnings.simplefilter("ignore", FutureWarning)
            return torch.export.load(str(path)).module()
    except Exception as error:  # a damaged archive fails in many ways inside torch
        raise FileError(
            f"model={str(path)!r} is no torch.export archive ({_line(error)})"
        ) from error


def _refuse_code(path: Path) -> None:
    """Raises FileError unless every pickle of an export archive holds plain tensors alone.

    ``torch.export.load`` unpickles without restriction, so an archive can run any code. It reads
    raw bytes for the tensors that the archive's own tables mark as not pickled; all other members
    are checked with the restricted unpickler first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            raw = {
                f"{table.rpartition('/')[0]}/{entry['path_name']}"
                for table in archive.namelist()
                if table.endswith("_config.json")
                for entry in json.loads(archive.read(table))["config"].values()
                if entry.get("use_pickle") is False
            }
            members = {name: archive.read(name) for name in archive.namelist() if name not in raw}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise FileError(f"model={str(path)!r} is no torch.export archive ({error})") from error
    for name, content in members.items():
        if name.endswith(".json") or Path(name).name in _EXPORT_MARKS:
            continue  # read as text
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:
            raise FileError(
                f"model={str(path)!r}: {name!r} holds pickled objects that could run code; export "
                "the model without custom objects, or name the code that builds it as "
                "path.py:factory"
            ) from error
