"""Hugging Face checkpoints on disk: a folder of ``config.json`` and safetensors, read as data.

The architecture is transformers' own class that the configuration names; code that a checkpoint
brings along is never run, and weights in pickles are never read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from crashsim.errors import CrashsimError, FileError, MissingExtraError
from crashsim.files.limits import check_file, check_size, most_bytes, read_text, size_on_disk
from crashsim.noticing import notice

PREFIX = "hf:"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIG = "config.json"
_TIMES = 4  # of the weights on disk, that a model takes while it is loaded
_SHOWN = 4  # names in a message
_Shapes = Mapping[str, tuple[int, ...]]


def checkpoint_files(folder: Path) -> list[Path]:
    """What is read of a checkpoint's folder, where it is there."""
    found = [folder / _CONFIG, folder / _INDEX, *sorted(folder.glob("*.safetensors"))]
    return [path for path in found if path.is_file()]


def read_checkpoint(spec: str) -> nn.Module:
    """The model of ``hf:FOLDER``, in evaluation mode.

    Args:
        spec: names the folder, as ``save_pretrained`` of transformers writes it.

    Raises:
        FileError: the folder holds no configuration or no safetensors, weights are missing or have
            other shapes than the architecture (they are named), or it would take too much memory.
        MissingExtraError: the package ``transformers`` is not installed.
    """
    subject, folder = f"model={spec!r}", Path(spec.removeprefix(PREFIX))
    described = _described(subject, folder)
    shapes = _stored(subject, folder)
    _check_layers(subject, described, len(shapes))
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"{subject}: Hugging Face checkpoints need `pip install crashsim[hf]`"
        ) from error
    try:
        with _quiet(transformers), torch.random.fork_rng(devices=[]):
            return _loaded(transformers, subject, folder, described, shapes)
    except CrashsimError:
        raise
    except Exception as error:  # whatever transformers says of a configuration
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileError(f"{subject} cannot be loaded ({told}); save it anew with "
                        "save_pretrained, or name code that builds it, as path.py:factory"
                        ) from error  # fmt: skip


def _described(subject: str, folder: Path) -> dict[str, Any]:
    """The configuration, as plain data."""
    remedy = "give a folder that save_pretrained of transformers wrote"
    if not folder.is_dir():
        raise FileError(f"{subject}: {str(folder)!r} is no folder; {remedy}")
    text = read_text(f"{subject}: {_CONFIG}", folder / _CONFIG, remedy)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{subject}: {_CONFIG} is not JSON ({error}); {remedy}") from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise FileError(f"{subject}: {_CONFIG} names no model_type; {remedy}")
    return found


def _stored(subject: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights on disk."""
    files = _weight_files(subject, folder)
    found: dict[str, tuple[int, ...]] = {}
    needed = 0
    for path in files:
        check_file(f"{subject}: {path.name}", path, "save it anew with save_pretrained")
        needed += _TIMES * path.stat().st_size
        try:
            with safe_open(path, "pt") as file:
                found |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        except Exception as error:  # of safetensors' own kinds
            raise FileError(
                f"{subject}: {path.name} is no file of safetensors ({error}); save it anew"
            ) from error
    allowed = max(most_bytes(), _TIMES * sum(map(size_on_disk, files)))
    check_size(f"{subject}: its weights", needed, "give a smaller one", allowed=allowed)
    return found


def _weight_files(subject: str, folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise FileError(
            f"{subject} holds no {_WEIGHTS}; weights in pickles are not read: load the model where "
            "you trust it and save it with save_pretrained(FOLDER, safe_serialization=True)"
        )
    text = read_text(f"{subject}: {_INDEX}", folder / _INDEX, "save it anew")
    try:
        names = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{subject}: {_INDEX} is no index of weights; save it anew") from error
    for name in names:
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not plain or "\\" in name:
            raise FileError(
                f"{subject}: {_INDEX} names {name!r}, which is no safetensors file of the folder; "
                "save it anew"
            )
    return [folder / name for name in sorted(names)]


def _check_layers(subject: str, described: Mapping[str, Any], tensors: int) -> None:
    """Raises FileError, before any is made, where a configuration asks for layers without end."""
    for name, value in described.items():
        of_layers = name.endswith(("layers", "_layer", "depth")) and isinstance(value, int)
        if of_layers and value > max(tensors, 1):
            raise FileError(
                f"{subject}: {_CONFIG} has {name}={value:,} and the folder holds {tensors:,} "
                "weights; give the configuration of these very weights"
            )


def _loaded(
    transformers: Any, subject: str, folder: Path, described: Mapping[str, Any], shapes: _Shapes
) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    kind = _kind(transformers, subject, config, described)
    with torch.device("meta"):
        outline = kind(config)
    own = max(most_bytes(), _TIMES * sum(p.stat().st_size for p in folder.glob("*.safetensors")))
    needed = sum(p.nbytes for p in (*outline.parameters(), *outline.buffers()))
    check_size(f"{subject}: what {_CONFIG} asks for", needed, "give its weights", allowed=own)
    model, told = kind.from_pretrained(
        str(folder), config=config, local_files_only=True,
        use_safetensors=True, output_loading_info=True, attn_implementation="eager",
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    _check_told(subject, told)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # nothing is kept from one call to the next
    found: nn.Module = model.eval()
    return found


def _kind(transformers: Any, subject: str, config: Any, described: Mapping[str, Any]) -> Any:
    """The class of transformers' own that makes the architecture of a configuration."""
    named = described.get("architectures") or ["none"]
    name = named[0] if isinstance(named, list) else named
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if is_model and getattr(kind, "config_class", None) is type(config):
        return kind
    raise FileError(
        f"{subject}: its architecture {name!r} is none that transformers "
        f"{transformers.__version__} makes of model_type {described['model_type']!r}; code that a "
        "checkpoint brings along is not run: name code of yours, as path.py:factory"
    )


def _check_told(subject: str, told: Mapping[str, Any]) -> None:
    """Raises FileError where weights were missing or did not fit; tells of those not used."""
    missing, wrong, more = (
        sorted(str(name[0] if isinstance(name, tuple) else name) for name in told.get(kind, ()))
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
    )
    if missing or wrong:
        parts = [f"{len(n)} {what} ({shown(n)})" for n, what in
                 ((missing, "are missing"), (wrong, "have other shapes")) if n]  # fmt: skip
        raise FileError(
            f"{subject}: of its weights {' and '.join(parts)}; give the weights of this very "
            "architecture"
        )
    if more:
        notice(f"{subject}: {len(more)} weights of the file are not used ({shown(more)})")


def shown(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and advice of transformers' own."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
