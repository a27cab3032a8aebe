"""Data sets: the embedded digits, MNIST-like idx files, numpy files."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crashsim.arguments import instance, nearest, one_of, whole
from crashsim.errors import ArgumentError, FileError
from crashsim.files.limits import check_size
from crashsim.files.stored_arrays import StoredArray, idx_array, numpy_arrays
from crashsim.importing import check_there, needed
from crashsim.model.twins.twin import apart

Split = Literal["train", "test"]
_Read = TypeVar("_Read")
_NAMED = ("digits", "digits-images", "mnist:FOLDER", "mnist-images:FOLDER")
_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_TARGETS = ("targets", "y", "Y", "labels")
_IMAGE_NAMES = {"train": "train-images", "test": "t10k-images"}


@dataclass(frozen=True)
class Data:
    """Examples and, if known, their classes.

    Attributes:
        name: as the user called it.
        inputs: (n, ...) float32.
        targets: (n,) int64 classes, or None.
    """

    name: str
    inputs: Tensor
    targets: Tensor | None = None

    def first(self, count: int) -> Data:
        """The first ``count`` examples (all, if there are fewer)."""
        targets = None if self.targets is None else self.targets[:count]
        return replace(self, inputs=self.inputs[:count], targets=targets)


@dataclass(frozen=True)
class Examples:
    """What models are scored on: numbers as they were stored, and perhaps several tensors.

    Attributes:
        name: as the user called it.
        inputs: (n, ...) a tensor; or several, by the name of the model's argument.
        targets: (n, ...) int64 classes or float64 numbers, or None.
    """

    name: str
    inputs: Tensor | dict[str, Tensor]
    targets: Tensor | None = None

    def first(self, count: int) -> Examples:
        """The first ``count`` examples (all, if there are fewer)."""
        targets = None if self.targets is None else self.targets[:count]
        if isinstance(self.inputs, Tensor):
            return replace(self, inputs=self.inputs[:count], targets=targets)
        few = {name: tensor[:count] for name, tensor in self.inputs.items()}
        return replace(self, inputs=few, targets=targets)

    def fitted(self, model: nn.Module) -> Tensor | dict[str, Tensor]:
        """The inputs as a model takes them.

        Whole numbers stay whole where the model runs on them (tokens, say), and are numbers of
        floating point for any other model. Several named tensors stay as they are.
        """
        if not isinstance(self.inputs, Tensor) or self.inputs.is_floating_point():
            return self.inputs
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                apart(model)(self.inputs[:1].clone())
        except Exception:  # whatever its layers say of whole numbers
            return self.inputs.float()
        return self.inputs


def load_examples(spec: str, limit: int | None = None) -> Examples:
    """Reads the examples that a model is scored on.

    Args:
        spec: as for ``load_data``. Of numpy files, arrays of int32 and int64 stay whole numbers;
            other types become float32. An ``.npz`` file without ``inputs`` or ``x`` holds several
            arrays by the names of the model's arguments (``input_ids``, ``attention_mask``), in
            which truth values stay so too. ``targets``, ``y`` or ``labels`` are targets, of any
            shape with a row for each example.
        limit: number of examples to read, from the first; None for all.

    Raises:
        FileError: a file is missing or damaged, or would take too much memory (see
            ``crashsim.files.limits``).
        ArgumentError: an unknown name, or arrays that cannot be inputs.
    """
    instance("data", spec, str, "a name as a text")
    limit = None if limit is None else whole("limit", limit, 1)
    if Path(spec).suffix in (".npy", ".npz"):
        return _numpy(spec, limit)
    data = load_data(spec, limit=limit)
    return Examples(data.name, data.inputs, data.targets)


def load_data(spec: str, split: Split = "test", limit: int | None = None) -> Data:
    """Reads a data set by name, as numbers of floating point.

    Args:
        spec: ``digits`` (scikit-learn's 1,797 images of 8 x 8, as vectors in [0, 1]);
            ``mnist:FOLDER`` (idx files, gzipped or not); ``digits-images`` and
            ``mnist-images:FOLDER`` (the same as (1, height, width) images, for convolutional
            networks); a ``.npy`` file of inputs; an ``.npz`` file with ``inputs`` or ``x`` and,
            optionally, ``targets``, ``y`` or ``labels``.
        split: which part. Digits, and a folder that holds only one of MNIST's two files, are
            split four to one after a fixed shuffle; numpy files are used whole.
        limit: number of examples to read, from the first; None for all.

    Raises:
        FileError: a file is missing or damaged, or would take too much memory (see
            ``crashsim.files.limits``).
        ArgumentError: an unknown name.
    """
    instance("data", spec, str, "a name as a text")
    one_of("split", split, ("train", "test"))
    limit = None if limit is None else whole("limit", limit, 1)
    name, _, folder = spec.partition(":")
    if name in ("digits", "digits-images"):
        data = _digits(spec, split)
    elif name in ("mnist", "mnist-images"):
        if not folder:
            raise ArgumentError(f"data={spec!r}: say where the idx files are, as {name}:FOLDER")
        data = _idx(spec, Path(folder), split, limit)
    elif Path(spec).suffix in (".npy", ".npz"):
        found = _numpy(spec, limit)
        if not isinstance(found.inputs, Tensor):
            raise FileError(
                f"data={spec!r} holds {sorted(found.inputs)}; name the examples 'inputs' or 'x'"
            )
        return Data(spec, found.inputs.float(), _classes(spec, found))
    else:
        raise ArgumentError(
            f"data={spec!r} is not known{nearest(spec, _NAMED)}; give 'digits', 'digits-images', "
            "'mnist:FOLDER', 'mnist-images:FOLDER', or a .npy or .npz file"
        )
    if limit is not None:
        data = data.first(limit)
    if name.endswith("-images"):
        return replace(data, inputs=data.inputs.unsqueeze(1))
    return replace(data, inputs=data.inputs.flatten(1))


def _digits(spec: str, split: Split) -> Data:
    what = f"data={spec!r}"
    check_there("sklearn", what)
    found = find_spec("sklearn")
    places = (found and found.submodule_search_locations) or ()
    files = [Path(place) / "datasets" / "data" / "digits.csv.gz" for place in places]
    if file := next((file for file in files if file.is_file()), None):
        # scikit-learn's own file, without its import, which takes longer than torch's.
        rows = np.loadtxt(file, delimiter=",")
        images, targets = rows[:, :-1], rows[:, -1]
    else:
        images, targets = needed("sklearn.datasets", what).load_digits(return_X_y=True)
    return _part(spec, images.reshape(-1, 8, 8) / 16, targets, split)


def _part(spec: str, images: NDArray[Any], targets: NDArray[Any], split: Split) -> Data:
    """One side of a fixed four-to-one split."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    cut = round(_TEST_SHARE * len(images))
    chosen = order[:cut] if split == "test" else order[cut:]
    return _data(spec, images[chosen], targets[chosen])


def _data(spec: str, inputs: NDArray[Any], targets: NDArray[Any] | None) -> Data:
    return Data(
        spec,
        torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)),
        None if targets is None else torch.from_numpy(targets.astype(np.int64)),
    )


def _idx(spec: str, folder: Path, split: Split, limit: int | None) -> Data:
    if not folder.is_dir():
        raise FileError(f"data={spec!r}: {str(folder)!r} is not a folder")
    own, other = _IMAGE_NAMES[split], _IMAGE_NAMES["test" if split == "train" else "train"]
    found = [start for start in (own, other) if _find(folder, start)]
    if len(found) == 2:
        return _data(spec, *_read_pair(folder, own, limit))
    if found:  # the shuffle needs them all
        return _part(spec, *_read_pair(folder, found[0], None), split)
    raise FileError(
        f"data={spec!r}: {str(folder)!r} holds neither train-images nor t10k-images idx files; "
        "download MNIST's four .gz files into it"
    )


def _find(folder: Path, start: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"{start}*idx*"))), None)


def _read_pair(folder: Path, start: str, limit: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images as float32 in [0, 1], and labels; the first ``limit``, or all."""
    image_file = _find(folder, start)
    label_file = _find(folder, start.replace("images", "labels"))
    if image_file is None or label_file is None:
        raise FileError(
            f"data: {str(folder)!r} holds {start} without its labels; add "
            f"{start.replace('images', 'labels')}-idx1-ubyte.gz"
        )
    images, labels = (_naming(path, partial(idx_array, path)) for path in (image_file, label_file))
    if (
        len(images.shape) != 3
        or len(labels.shape) != 1
        or images.shape[0] != labels.shape[0]
        or not math.prod(images.shape)
    ):
        raise FileError(
            f"data: {image_file.name} has shape {images.shape} and {label_file.name} "
            f"{labels.shape}; they do not belong together"
        )
    grey = _naming(image_file, lambda: images.first(limit, np.dtype(np.float32)))
    grey /= np.float32(255)
    return grey, _naming(label_file, lambda: labels.first(limit, np.dtype(np.uint8)))


def _naming(path: Path, read: Callable[[], _Read]) -> _Read:
    """Reads an idx file; the error of a damaged one names it."""
    try:
        return read()
    except FileError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise FileError(
            f"data: cannot read {str(path)!r} as an idx file ({error}); download it again"
        ) from error


def _numpy(spec: str, limit: int | None) -> Examples:
    with numpy_arrays(spec) as stored:
        if isinstance(stored, StoredArray):
            return Examples(spec, _inputs(spec, stored, limit))
        found = dict(stored)
        lone = next((found[name] for name in ("inputs", "x", "X") if name in found), None)
        targets = next((found.pop(name) for name in _TARGETS if name in found), None)
        if lone is None and not found:
            raise FileError(f"data={spec!r} holds no inputs; name the examples 'inputs' or 'x'")
        inputs: Tensor | dict[str, Tensor]
        if lone is not None:
            inputs, count = _inputs(spec, lone, limit), lone.shape[0]
        else:
            _check_together(spec, found, limit)
            inputs = {name: _inputs(spec, array, limit, name) for name, array in found.items()}
            count = next(iter(found.values())).shape[0]
        found_targets = None if targets is None else _targets(spec, targets, count, limit)
        return Examples(spec, inputs, found_targets)


def _check_together(spec: str, found: Mapping[str, StoredArray], limit: int | None) -> None:
    """Raises FileError where several arrays would take too much memory, if each alone does not."""
    needed = sum(
        min(a.shape[0], limit or a.shape[0]) * math.prod(a.shape[1:]) * _kept(a.dtype, n).itemsize
        for n, a in found.items()
        if a.shape
    )
    check_size(f"data={spec!r}: its {len(found)} arrays", needed, "give fewer rows (--limit)")


def _kept(dtype: np.dtype[Any], name: str | None) -> np.dtype[Any]:
    """The type in which inputs are kept; truth values stay so where they have a name."""
    if dtype.kind == "i" and dtype.itemsize >= 4:
        return np.dtype(np.int64)
    return np.dtype(np.bool_ if dtype.kind == "b" and name is not None else np.float32)


def _inputs(spec: str, array: StoredArray, limit: int | None, name: str | None = None) -> Tensor:
    """One array of inputs; those with a name may be truth values."""
    what = "inputs" if name is None else f"{name!r}"
    if not array.shape or not math.prod(array.shape):
        raise ArgumentError(
            f"data={spec!r}: {what} of shape {array.shape} hold no examples; give at least one"
        )
    if array.dtype.kind not in "fiub":
        raise ArgumentError(
            f"data={spec!r}: {what} of type {array.dtype} are not numbers; give real ones"
        )
    found = array.first(limit, _kept(array.dtype, name))
    if not np.isfinite(found).all():
        raise ArgumentError(
            f"data={spec!r}: {what} hold NaN, infinity or numbers beyond 32 bits; clean or scale "
            "the data first"
        )
    return torch.from_numpy(found)


def read_targets(spec: str, count: int, limit: int | None = None) -> Tensor:
    """The targets of a ``.npy`` file, or of an ``.npz`` file that names them (``targets``, ``y``).

    Args:
        spec: the file.
        count: number of examples that they go with.
        limit: how many of them are wanted, from the first; None for all.

    Raises:
        FileError: the file is missing or damaged, or holds none.
        ArgumentError: they are not numbers, or not as many.
    """
    instance("targets", spec, str, "a file's name as a text")
    if Path(spec).suffix not in (".npy", ".npz"):
        raise ArgumentError(f"targets={spec!r}; give a .npy or .npz file")
    with numpy_arrays(spec) as stored:
        if isinstance(stored, StoredArray):
            return _targets(spec, stored, count, limit)
        found = dict(stored)
        names = [name for name in _TARGETS if name in found]
        names = names or (list(found) if len(found) == 1 else [])
        if not names:
            raise FileError(
                f"targets={spec!r} holds {sorted(found)}; name the targets 'targets' or 'y'"
            )
        return _targets(spec, found[names[0]], count, limit)


def _targets(spec: str, array: StoredArray, count: int, limit: int | None) -> Tensor:
    if not array.shape or array.shape[0] != count or not math.prod(array.shape):
        raise ArgumentError(
            f"data={spec!r}: targets of shape {array.shape} for {count} inputs; "
            "give a row for each: one class, or some numbers"
        )
    if array.dtype.kind not in "fiub":
        raise ArgumentError(
            f"data={spec!r}: targets of type {array.dtype} are not classes or numbers; "
            "give whole numbers from 0, or real ones"
        )
    targets = array.first(limit, array.dtype.newbyteorder("="))
    if not np.isfinite(targets).all():
        raise ArgumentError(f"data={spec!r}: targets hold NaN or infinity; clean the data first")
    whole = targets.dtype.kind != "f" or bool((targets == np.round(targets)).all())
    return torch.from_numpy(targets.astype(np.int64 if whole else np.float64))


def _classes(spec: str, found: Examples) -> Tensor | None:
    """The targets, where each example has one class."""
    targets = found.targets
    if targets is not None and (targets.dim() != 1 or targets.is_floating_point()):
        raise ArgumentError(
            f"data={spec!r}: targets of shape {tuple(targets.shape)} and type {targets.dtype} are "
            "not classes; give one whole number from 0 for each input"
        )
    return targets
