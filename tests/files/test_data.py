"""Data sets: idx files written here, numpy files, and damaged ones."""

import gzip
import io
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.files.data import load_data, load_examples


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
    with pytest.raises(FileError, match="not a folder"):
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


def test_digits_are_those_that_scikit_learn_loads():
    images, targets = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    parts = [load_data("digits", split) for split in ("train", "test")]
    found = np.concatenate(
        [np.c_[16 * part.inputs.numpy(), part.targets.numpy()] for part in parts]
    )
    wanted = np.c_[images, targets]
    np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


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


def peak_of(call):
    """Bytes of Python and numpy at most, while it is called."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed, "npy"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", ">i4", "u1", "<u8", "?", "<f2"])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 5), (1, 4)], ids=str)
def test_the_first_rows_are_those_of_the_whole(tmp_path, saver, order, kind, shape):
    values = np.arange(np.prod(shape)).reshape(shape) % 200
    x = np.asarray(values if kind != "?" else values % 3, np.dtype(kind), order=order)
    path = str(tmp_path / "d.npz")
    if saver == "npy":
        path = str(tmp_path / "d.npy")
        np.save(path, x)
    else:
        saver(path, x=x, y=np.arange(len(x)))
    for limit in (1, 2, 6, 7, 100, None):
        data = load_data(path, limit=limit)
        np.testing.assert_array_equal(data.inputs, x.astype(np.float32)[:limit])
        examples = load_examples(path, limit)
        np.testing.assert_array_equal(examples.inputs, x.astype(np.float64)[:limit])
        if saver != "npy":
            assert data.targets.tolist() == list(range(len(x)))[:limit]


def test_rows_of_a_column_wise_array_of_more_than_a_piece(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(300_000, 3)))
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, x=x)
        for limit in (5, 200_000, None):
            found = load_data(str(tmp_path / name), limit=limit).inputs
            np.testing.assert_array_equal(found, x[:limit].astype(np.float32))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_first_rows_of_idx_files(folder, suffix):
    folder("train", suffix)
    path = folder("t10k", suffix)
    data = load_data(f"mnist:{path}", limit=4)
    np.testing.assert_array_equal(data.inputs, (IMAGES[:4].reshape(4, 6) / 255).astype(np.float32))
    np.testing.assert_array_equal(data.targets, LABELS[:4])
    alone = path / f"t10k-images-idx3-ubyte{suffix}"
    alone.rename(path / "gone")
    whole = load_data(f"mnist:{path}")  # of train alone: shuffled, so its first rows are elsewhere
    np.testing.assert_array_equal(load_data(f"mnist:{path}", limit=2).inputs, whole.inputs[:2])


ROWS = 2**20


@pytest.fixture
def bomb(tmp_path):
    """64 MiB of zeros in 64 KiB, as a numpy archive and as gzipped idx files."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (ROWS, 64)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64 * ROWS))
        archive.writestr("y.npy", npy(np.zeros(ROWS, np.uint8)))
        archive.writestr("unread.npy", header.getvalue() + bytes(64 * ROWS))
    images = struct.pack(">HBB3I", 0, 8, 3, ROWS, 8, 8) + bytes(64 * ROWS)
    labels = struct.pack(">HBBI", 0, 8, 1, ROWS) + bytes(ROWS)
    for start in ("train", "t10k"):
        (tmp_path / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (tmp_path / f"{start}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, 1))
    return tmp_path


def test_what_unpacks_to_much_is_read_only_so_far(bomb, monkeypatch):
    specs = [str(bomb / "x.npz"), f"mnist:{bomb}"]
    for spec in specs:
        assert peak_of(lambda spec=spec: load_examples(spec, 2)) < 8 * 2**20
    monkeypatch.setenv("CRASHSIM_FILE_LIMIT", "100MiB")
    for spec in specs:  # as 32-bit numbers they take four times their bytes

        def refused(spec=spec):
            with pytest.raises(FileError, match=r"256\.0 MiB .* the 100\.0 MiB .*--limit"):
                load_examples(spec)

        assert peak_of(refused) < 8 * 2**20
    with pytest.raises(FileError, match=r"256\.0 MiB"):
        load_data(specs[0], limit=10 * ROWS)


def test_several_arrays_share_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("CRASHSIM_FILE_LIMIT", "1MiB")
    np.savez_compressed(tmp_path / "d.npz", **{c: np.zeros((200, 1000), "f4") for c in "abcd"})
    with pytest.raises(FileError, match=r"its 4 arrays would take 3\.1 MiB"):
        load_examples(str(tmp_path / "d.npz"))
    assert load_examples(str(tmp_path / "d.npz"), 20).inputs["d"].shape == (20, 1000)


def npy(array, **changed):
    """A ``.npy`` file with a header that may lie."""
    header = io.BytesIO()
    described = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, described | changed)
    return header.getvalue() + array.tobytes()


X = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.mark.parametrize(
    "raw",
    [
        npy(X, shape=(-2, -3)),
        npy(X, shape=(10**12, 3)),
        npy(X, shape=(2, 2)),
        npy(X, shape=(10**30,)),
        npy(X, descr="<f8"),
        npy(X, descr="|O"),
        npy(X, descr=[("a", "<f4")]),
        npy(X, descr=("<f4", (3,)), shape=(2,)),
        npy(X, descr="|S999999999"),
        npy(X, descr="<c8", shape=(3,)),
        npy(X) + b"more",
        npy(X)[:-1],
        npy(X).replace(b"NUMPY\x01", b"NUMPY\x09"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
        pickle.dumps(X),
    ],
    ids=range(15),
)
def test_headers_that_lie(tmp_path, raw):
    path = tmp_path / "x.npy"
    path.write_bytes(raw)
    for limit in (None, 1):
        assert peak_of(lambda limit=limit: told(path, limit)) < 2**22
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", raw)
    assert peak_of(lambda: told(tmp_path / "x.npz", 1)) < 2**22


def told(path, limit):
    with pytest.raises(CrashsimError, match=path.name):
        load_data(str(path), limit=limit)


def test_archives_that_numpy_did_not_write(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", npy(X))
        archive.writestr("x.npy", npy(X + 1))
    with pytest.raises(FileError, match="'x' is in it twice"):
        load_data(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy(X))
    with pytest.raises(FileError, match="packed in a way"):
        load_data(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(X))
        archive.writestr("readme.txt", "about it")
    with pytest.raises(FileError, match=r"readme\.txt"):
        load_data(str(path))
