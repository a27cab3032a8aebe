"""Sample: one draw of all faults, known by its seed and number, kept and replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from crashsim.arguments import path as file_path
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.errors import FileError, NotApplicableError
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.sample.faulty_copy import faulty_copy
from crashsim.injection.sample.strikes import Strike, strikes_of
from crashsim.writing import check_writable, write_files

_FORMAT = 1
_LARGEST = 2**31  # bytes of a file that is read


@dataclass(frozen=True)
class _Source:
    """What a sample was drawn in: a space's model, its point, and how outputs are computed."""

    faulty: FaultyModel
    points: Points
    outputs: Callable[[Points], Floats]

    @property
    def e(self) -> Tensor:
        """(N,) the coordinates."""
        return self.faulty.coordinates(self.points)[0]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of the faults: ``space.sample(seed, index)``, or ``space.at_faults(...)``.

    Attributes:
        faults: everything that is struck, in the order of the sites.
        weights: the struck parameters by name, with their faults: what
            ``model.load_state_dict(sample.weights, strict=False)`` takes.
        seed, index: the sample is the one of this number (from 0) that Monte Carlo draws with this
            seed; None for faults that were chosen.
    """

    faults: tuple[Strike, ...]
    weights: Mapping[str, Tensor]
    seed: int | None = None
    index: int | None = None
    _source: _Source | None = field(default=None, repr=False)

    @classmethod
    def at(
        cls,
        faulty: FaultyModel,
        points: Points,
        outputs: Callable[[Points], Floats],
        seed: int | None = None,
        index: int | None = None,
    ) -> Sample:
        """The sample at a single point.

        Args:
            faulty: the model and where faults are placed.
            points: the point.
            outputs: computes (1, B, K) outputs of it.
            seed, index: by which it was drawn.
        """
        source = _Source(faulty, points, outputs)
        struck = {
            p.site.module
            for p in faulty.placements
            if p.site.kind == "parameter" and source.e[p.start : p.stop].any()
        }
        with torch.no_grad():
            found = faulty.perturbed_weights(source.e)
        weights = {name: found[name].detach().cpu().clone() for name in sorted(struck)}
        clean = {name: faulty.model.tensors[name].detach().cpu() for name in struck}
        strikes = strikes_of(faulty.placements, points.dense()[0], clean, weights)
        return cls(strikes, weights, seed, index, source)

    @property
    def outputs(self) -> Floats:
        """(B, K) F at the sample; infinite or NaN where the faults make it so.

        Raises:
            NotApplicableError: the sample was read from a file.
        """
        source = self._bound()
        found: Floats = source.outputs(source.points)[0]
        return found

    def model(self) -> nn.Module:
        """A copy of the model with these faults in it, in the type that the space computes in.

        Struck weights are in its state dict. Where neurons or inputs are struck, it is a module
        around the copy, which strikes them in every forward pass. The user's model stays as it is.

        Raises:
            NotApplicableError: the sample was read from a file.
        """
        source = self._bound()
        with source.faulty.model.at_work(), torch.no_grad():
            return faulty_copy(source.faulty, source.e, self.weights)

    def _bound(self) -> _Source:
        if self._source is None:
            raise NotApplicableError(
                "sample: was read from a file, which holds no model; replay it with "
                "space.at_faults(sample.faults)"
            )
        return self._source

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Writes PATH.safetensors (the struck parameters) and PATH.json (what was struck).

        Raises:
            FileError: they cannot be written.
        """
        tensors, table = sample_files(path)
        plain = {
            "format": _FORMAT,
            "seed": self.seed,
            "index": self.index,
            "faults": [_finite(asdict(strike)) for strike in self.faults],
            "weights": sorted(self.weights),
        }
        content = save({name: w.contiguous() for name, w in self.weights.items()})
        text = json.dumps(plain, indent=1, allow_nan=False)
        write_files("path", (tensors, content), (table, text.encode()))
        return tensors, table

    @classmethod
    def load(cls, path: str | Path) -> Sample:
        """What ``save`` wrote, without a model: ``space.at_faults(sample.faults)`` replays it.

        Raises:
            FileError: the files cannot be read, or are no sample.
        """
        tensors, table = sample_files(path)
        try:
            plain = json.loads(_read(table))
            weights = load(_read(tensors))
            faults = tuple(_strike(one) for one in plain["faults"])
            if plain["format"] != _FORMAT or sorted(weights) != plain["weights"]:
                raise ValueError("its two files do not belong together, or are of another version")
            return cls(faults, weights, _number(plain["seed"]), _number(plain["index"]))
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise FileError(
                f"path={str(path)!r}: is no sample ({error}); give what Sample.save wrote"
            ) from error


def sample_files(path: str | Path) -> tuple[Path, Path]:
    """The two files of a sample that is saved to this path: its parameters, and its table."""
    place = file_path("path", path)
    if place.suffix in (".json", ".safetensors"):
        place = place.with_suffix("")
    if not place.name:
        raise FileError(f"path={str(path)!r}: give the name of a file")
    return place.with_name(f"{place.name}.safetensors"), place.with_name(f"{place.name}.json")


def check_sample_path(path: str | Path) -> None:
    """Raises FileError, before the work, where a sample could not be saved."""
    for file in sample_files(path):
        check_writable("path", file)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise FileError(f"path={str(path)!r}: has more than {_LARGEST} bytes; is it a sample?")
        return path.read_bytes()
    except OSError as error:
        raise FileError(
            f"path={str(path)!r}: cannot be read ({error.strerror}); give what Sample.save wrote"
        ) from error


def _finite(plain: dict[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON does not hold."""
    lost = {k for k, v in plain.items() if isinstance(v, float) and not math.isfinite(v)}
    return {k: None if k in lost else v for k, v in plain.items()}


def _strike(plain: Any) -> Strike:
    site, fault, index = str(plain["site"]), str(plain["fault"]), plain["index"]
    clean, faulty = (None if plain[k] is None else float(plain[k]) for k in ("clean", "faulty"))
    whole = tuple(int(i) for i in index)
    return Strike(site, whole, fault, float(plain["value"]), clean, faulty)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
