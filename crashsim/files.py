"""Models by name: architecture specs, files, and factories in the user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from crashsim.architectures import Architecture, is_architecture, parse_architecture
from crashsim.errors import ArgumentError, FileError

FORMAT = 1
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
    """Writes ``PATH.safetensors`` (weights) and ``PATH.json`` (how to rebuild the network)."""
    stem = _stem(Path(path))
    weights, description = (
        stem.with_name(stem.name + ".safetensors"),
        stem.with_name(stem.name + ".json"),
    )
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(weights))
        description.write_text(
            json.dumps(
                {"format": FORMAT, "architecture": str(architecture), "facts": facts}, indent=1
            )
        )
    except OSError as error:
        raise FileError(f"out: cannot write {str(stem)!r} ({error})") from error
    return weights, description


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
        FileError: a file is missing or damaged.
        ArgumentError: the name stands for nothing, or its factory returns no module.
    """
    if is_architecture(spec):
        architecture = parse_architecture(spec)
        built = architecture.build(seed)
        if weights:
            _load_state(built, weights)
        return NamedModel(spec, built, architecture, trained=weights is not None)
    path = Path(spec)
    if path.suffix == ".nir":
        from crashsim.nir import read_chip

        chip, rates = read_chip(path, reset)
        return NamedModel(spec, rates, chip=chip)
    if path.suffix == ".pt2":
        return NamedModel(spec, _load_exported(path))
    if (
        path.name
        and _stem(path).with_name(_stem(path).name + ".json").exists()
        and ":" not in path.name
    ):
        return _load_own(spec, _stem(path))
    if ":" in spec:
        model = _call_factory(spec)
        if weights:
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


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def _load_own(spec: str, stem: Path) -> NamedModel:
    description = stem.with_name(stem.name + ".json")
    try:
        described = json.loads(description.read_text())
        if described["format"] != FORMAT:
            raise FileError(f"model={spec!r}: format {described['format']!r} is not {FORMAT}")
        architecture = parse_architecture(described["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"model={spec!r}: {description.name} is no model description ({error})"
        ) from error
    model = architecture.build()
    _load_state(model, str(stem.with_name(stem.name + ".safetensors")))
    return NamedModel(spec, model, architecture, facts=described.get("facts"))


def _load_state(model: nn.Module, path: str) -> None:
    """Loads weights without ever running code from the file."""
    if not Path(path).exists():
        raise FileError(f"weights: {path!r} does not exist")
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
    ) as error:
        raise FileError(
            f"weights: {path!r} does not fit the network ({str(error).strip()})"
        ) from error
    except Exception as error:  # torch.load refuses pickled code with pickle's own exceptions
        raise FileError(
            f"weights: {path!r} is not a plain state dict ({str(error).splitlines()[0]}); "
            "save model.state_dict(), or use safetensors"
        ) from error


def _load_exported(path: Path) -> nn.Module:
    if not path.exists():
        raise FileError(f"model={str(path)!r} does not exist")
    _refuse_code(path)
    try:
        with warnings.catch_warnings():  # torch's own, of what it will change in loading
            warnings.simplefilter("ignore", FutureWarning)
            return torch.export.load(str(path)).module()
    except Exception as error:  # a damaged archive fails in many ways inside torch
        raise FileError(
            f"model={str(path)!r} is no torch.export archive ({str(error).splitlines()[0]})"
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


def _call_factory(spec: str) -> nn.Module:
    where, _, name = spec.rpartition(":")
    module = _import_file(Path(where), spec) if where.endswith(".py") else _import(where, spec)
    factory = getattr(module, name, None)
    if factory is None:
        raise ArgumentError(f"model={spec!r}: {where!r} has no {name!r}")
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ArgumentError(f"model={spec!r}: {name!r} is {type(factory).__name__}, not a factory")
    model = factory()
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model={spec!r}: {name}() returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _import(name: str, spec: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FileError(f"model={spec!r}: cannot import {name!r} ({error})") from error
    finally:
        sys.path.pop(0)


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.exists():
        raise FileError(f"model={spec!r}: {str(path)!r} does not exist")
    name = f"crashsim_user_{path.stem}"  # never shadows an installed module
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module
