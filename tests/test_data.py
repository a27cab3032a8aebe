"""Data sets: idx files written here, numpy files, and damaged ones."""

import gzip
import struct

import numpy as np
import pytest
import torch
from torch import nn

from crashsim.data import load_data, load_examples
from crashsim.errors import ArgumentError, CrashsimError, FileError


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.arange(10 * 3 * 2).reshape(10, 3, 2)
LABELS = np.arange(10) % 4


@pytest.fixture
def folder(tmp_path):
    def write(start="t10k", suffix="", images=None, labels=None):
        pack = gzip.compress if suffix == ".gz" else bytes
        for name, raw in (
            (f"{start}-images-idx3-ubyte", idx(IMAGES) if images is None else images),
            (f"{start}-labels-idx1-ubyte", idx(LABELS) if labels is None else labels),
        ):
            (tmp_path / (name + suffix)).write_bytes(pack(raw))
        return tmp_path

    return write


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(folder, suffix):
    folder("train", suffix)
    path = folder("t10k", suffix)
    data = load_data(f"mnist:{path}")
    np.testing.assert_allclose(data.inputs.numpy(), IMAGES.reshape(10, 6) / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.targets, LABELS)
    assert load_data(f"mnist-images:{path}").inputs.shape == (10, 1, 3, 2)


def test_a_folder_with_one_file_is_split(folder):
    path = folder("train")
    train, test = (load_data(f"mnist:{path}", split) for split in ("train", "test"))
    assert (len(train.inputs), len(test.inputs)) == (8, 2)
    rows = np.concatenate([train.inputs, test.inputs])
    np.testing.assert_allclose(np.sort(rows[:, 0]), IMAGES[:, 0, 0] / 255, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"\0",
        b"\0\0\x0d" + idx(IMAGES)[3:],
        b"PNG" * 20,
        b"\0\0\x08\xff",
        idx(LABELS),
        idx(IMAGES[:5]),
        idx(IMAGES[:0]),
    ],
)
def test_damaged_idx_files(folder, raw, suffix):
    with pytest.raises(FileError, match="t10k"):
        load_data(f"mnist:{folder(suffix=suffix, images=raw)}")


@pytest.mark.parametrize("at", [0, 2, 12, 20, -6])
def test_damaged_gzip_files(folder, at):
    path = folder(suffix=".gz") / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(FileError, match="t10k-images"):
        load_data(f"mnist:{path.parent}")


def test_both_files_are_used_whole(folder):
    folder("train")
    path = folder("t10k", images=idx(IMAGES[:4]), labels=idx(LABELS[:4]))
    train, test = (load_data(f"mnist:{path}", split) for split in ("train", "test"))
    assert (len(train.inputs), len(test.inputs)) == (10, 4)


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileError, match="no folder"):
        load_data(f"mnist:{tmp_path}/none")
    with pytest.raises(FileError, match="neither"):
        load_data(f"mnist:{tmp_path}")
    (folder() / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileError, match="without its labels"):
        load_data(f"mnist:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "digit", "mnist", "mnist:", "DIGITS", "data.csv", "cifar10"])
def test_unknown_names(spec):
    with pytest.raises(ArgumentError) as raised:
        load_data(spec)
    assert repr(spec) in str(raised.value)


def test_digits():
    train, test = load_data("digits", "train"), load_data("digits")
    assert len(train.inputs) + len(test.inputs) == 1797
    assert train.inputs.shape[1:] == (64,)
    assert 0 <= train.inputs.min() < train.inputs.max() <= 1
    assert set(test.targets.tolist()) == set(range(10))
    assert load_data("digits-images").inputs.shape[1:] == (1, 8, 8)
    assert len(test.first(7).inputs) == len(test.first(7).targets) == 7


def test_numpy_files(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.array([0, 1, 2, 0, 1])
    np.save(tmp_path / "x.npy", x)
    data = load_data(str(tmp_path / "x.npy"))
    np.testing.assert_allclose(data.inputs, x, rtol=1e-6)
    assert data.targets is None
    for names in ({"inputs": x, "targets": y}, {"x": x, "y": y}, {"X": x, "Y": y.astype(float)}):
        np.savez(tmp_path / "d.npz", **names)
        data = load_data(str(tmp_path / "d.npz"))
        np.testing.assert_allclose(data.inputs, x, rtol=1e-6)
        np.testing.assert_array_equal(data.targets, y)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.ones((2, 3))},
        {"x": np.ones(())},
        {"x": np.ones((0, 3))},
        {"x": np.array([["a"]])},
        {"x": np.ones((2, 3)), "y": np.array([1])},
        {"x": np.ones((2, 3)), "y": np.array([[1], [2]])},
        {"x": np.ones((2, 3)), "y": np.array(["a", "b"])},
        {"x": np.ones((2, 3)), "y": np.array([0.5, 1.0])},
        {"x": np.ones((2, 3)), "y": np.array([np.nan, 1.0])},
        {"x": np.array([[{}]], dtype=object)},
    ],
    ids=str,
)
def test_bad_numpy_files(tmp_path, arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(CrashsimError, match=r"d\.npz"):
        load_data(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("raw", [None, b"", b"nonsense", b"PK\x03\x04 truncated", b"\x93NUMPY\1\0"])
def test_damaged_numpy_files(tmp_path, name, raw):
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(FileError, match="cannot be read"):
        load_data(str(path))
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, x=np.random.default_rng(0).normal(size=(50, 3)))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(FileError, match="cannot be read"):
        load_data(str(tmp_path / "cut.npz"))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)).mean(1))


@pytest.mark.parametrize(
    ("kind", "whole"),
    [("int64", True), ("int32", True), ("uint8", False), ("int8", False), ("float64", False)],
)
def test_whole_numbers_stay_whole_where_the_model_takes_them(tmp_path, seeded, kind, whole):
    path = str(tmp_path / "x.npy")
    np.save(path, np.arange(6).reshape(2, 3).astype(kind))
    examples = load_examples(path)
    assert examples.inputs.is_floating_point() != whole
    assert load_data(path).inputs.dtype == torch.float32
    if whole:
        assert not examples.fitted(seeded(Tokens)).is_floating_point()
        assert not examples.first(1).fitted(seeded(Tokens)).is_floating_point()
    linear = seeded(lambda: nn.Linear(3, 2))
    assert examples.fitted(linear).dtype == torch.float32
    assert load_examples("digits").first(3).inputs.shape == (3, 64)


def test_several_arrays_are_arguments_of_their_names(tmp_path):
    path = str(tmp_path / "x.npz")
    ids, mask = np.arange(6).reshape(2, 3), np.array([[True, True, False]] * 2)
    np.savez(path, input_ids=ids, mask=mask, bias=np.ones(2), y=np.array([0, 1]))
    examples = load_examples(path)
    kinds = {name: tensor.dtype for name, tensor in examples.inputs.items()}
    assert kinds == {"input_ids": torch.int64, "mask": torch.bool, "bias": torch.float32}
    assert examples.targets.tolist() == [0, 1]
    assert examples.fitted(None) is examples.inputs
    first = examples.first(1)
    assert {len(tensor) for tensor in first.inputs.values()} == {1}
    assert first.targets.tolist() == [0]
    with pytest.raises(FileError, match=r"\['bias', 'input_ids', 'mask'\]; name the examples"):
        load_data(path)
    np.savez(path, y=np.array([0, 1]))
    with pytest.raises(FileError, match="holds no inputs"):
        load_examples(path)
    np.savez(path, a=np.array([["text"]]))
    with pytest.raises(ArgumentError, match="'a' of type"):
        load_examples(path)
