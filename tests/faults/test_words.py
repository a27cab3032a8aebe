"""Stored words: bit-exact against ml_dtypes and struct; what several struck bits of one make."""

import math
import struct

import numpy as np
import pytest
import torch

from crashsim import BitFlip, BitStuck
from crashsim.errors import ArgumentError
from crashsim.faults.words import FloatFormat, format_named
from crashsim.faults.words.word_fault import BitSteps

ml_dtypes = pytest.importorskip("ml_dtypes")

SMALL = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
FIELDS = {  # sign, exponent, mantissa: numbers of bits, by their standards
    "float64": (1, 11, 52),
    "float32": (1, 8, 23),
    "float16": (1, 5, 10),
    "bfloat16": (1, 8, 7),
    "float8_e4m3fn": (1, 4, 3),
    "float8_e5m2": (1, 5, 2),
}


def same(found, wanted):
    """Equal, NaN to NaN, and zeros of one sign."""
    with np.errstate(invalid="ignore"):  # of NaN that signal
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    np.testing.assert_array_equal(found, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


def every_word(name):
    kind = SMALL[name]
    size = np.dtype(kind).itemsize
    words = np.arange(2 ** (8 * size), dtype=f"<u{size}")
    with np.errstate(invalid="ignore"):
        return words, words.view(kind).astype(np.float64)


@pytest.mark.parametrize("name", SMALL)
def test_every_word_means_what_ml_dtypes_says(name):
    words, values = every_word(name)
    form = format_named(name)
    same(form.values(torch.from_numpy(words.astype(np.int64))), values)
    numbers = np.isfinite(values)
    read = form.read(torch.from_numpy(values[numbers]))
    np.testing.assert_array_equal(read, words[numbers])


@pytest.mark.parametrize("name", SMALL)
def test_every_flip_of_every_word(name):
    """Each bit of each word, against the bits of numpy's and ml_dtypes' own words."""
    words, values = every_word(name)
    kind = SMALL[name]
    numbers = np.isfinite(values)
    words, values = words[numbers], values[numbers]
    fault = BitFlip(0.1, format=name)
    bits = 8 * words.dtype.itemsize
    clean = torch.from_numpy(values)
    for bit in range(bits):
        e = torch.zeros(len(words), bits)
        e[:, bit] = 1
        found = fault.perturb(clean, e.reshape(1, -1), tuple(clean.shape))[0]
        flipped = words ^ words.dtype.type(1 << bit)
        same(found, flipped.view(kind))


def test_random_words_of_single_and_double_precision_against_struct():
    rng = np.random.default_rng(0)
    for name, code, unsigned, bits in (("float32", "f", "I", 32), ("float64", "d", "Q", 64)):
        words = rng.integers(0, 2**bits, 300, dtype=np.uint64)
        values = [struct.unpack(f"<{code}", struct.pack(f"<{unsigned}", int(w)))[0] for w in words]
        pairs = [(w, v) for w, v in zip(words, values, strict=True) if math.isfinite(v)]
        clean = torch.tensor([v for _, v in pairs], dtype=getattr(torch, name))
        struck = rng.random((len(pairs), bits)) < 3 / bits  # several bits of one word
        words_of_pairs = np.array([int(w) for w, _ in pairs], dtype=np.uint64)
        exponent = format_named(name).fields["exponent"]
        struck[0] = [b in exponent and not int(words_of_pairs[0]) >> b & 1 for b in range(bits)]
        masks = [sum(1 << int(b) for b in np.flatnonzero(row)) for row in struck]
        wanted = [
            struct.unpack(f"<{code}", struct.pack(f"<{unsigned}", int(w) ^ m))[0]
            for (w, _), m in zip(pairs, masks, strict=True)
        ]
        e = torch.from_numpy(struck.reshape(1, -1)).float()
        for fault in (BitFlip(0.1, format=name), BitFlip(count=3, format=name)):
            found = fault.perturb(clean, e, tuple(clean.shape))[0]
            assert found.dtype == clean.dtype
            same(found.double(), wanted)
        assert any(not math.isfinite(value) for value in wanted)


@pytest.mark.parametrize("name", FIELDS)
def test_parts_of_a_word(name):
    form = format_named(name)
    assert isinstance(form, FloatFormat)
    sizes = tuple(len(form.fields[part]) for part in ("sign", "exponent", "mantissa"))
    assert sizes == FIELDS[name]
    order = (*form.fields["mantissa"], *form.fields["exponent"], *form.fields["sign"])
    assert order == tuple(range(form.bits))
    for part in form.fields:
        fault = BitFlip(0.1, format=name, bits=part)
        assert fault.coordinate_count((3, 2)) == 6 * len(form.fields[part])
        assert [mask.bit_length() - 1 for mask in fault.masks] == list(form.fields[part])


def test_bits_that_add_up_do_and_others_do_not(randn):
    """Mantissa and sign alone are sums of changes; with an exponent the whole word counts."""
    value = randn(40, dtype=torch.float32)
    rng = np.random.default_rng(1)
    for bits, adds_up in (("mantissa", True), ("sign", True), ("exponent", False), (None, False)):
        fault = BitFlip(0.1, format="float32", bits=bits)
        assert fault.adds_up == adds_up
        count = len(fault.masks)
        e = torch.from_numpy(rng.random((1, 40 * count)) < 0.3).float()
        struck = fault.perturb(value, e, (40,))[0]
        words = value.numpy().view(np.uint32)
        masks = [
            sum(fault.masks[i] for i in np.flatnonzero(row)) for row in e.numpy().reshape(40, count)
        ]
        wanted = (words ^ np.array(masks, dtype=np.uint32)).view(np.float32)
        if adds_up:
            np.testing.assert_allclose(struck, wanted, rtol=1e-6)
        else:
            same(struck, wanted)
            sums = value + (e.view(40, count) * fault.displacement(value)).sum(-1)
            assert not np.allclose(sums, wanted, rtol=0.1, equal_nan=True)
    assert not BitFlip(0.1, bits=[30], format="float32").adds_up  # by up to 1e38
    assert BitFlip(0.1, format="int8").adds_up
    assert not BitFlip(0.1, format="int8", upset=2).adds_up


@pytest.mark.parametrize("to", [0, 1])
def test_stuck_bits(to, randn):
    value = randn(30, dtype=torch.float32)
    fault = BitStuck(0.1, to=to, format="float32", bits=[22, 23, 31])
    words = value.numpy().view(np.uint32)
    mask = np.uint32(1 << 22 | 1 << 31)
    e = torch.zeros(30, 3)
    e[:, [0, 2]] = 1
    struck = fault.perturb(value, e.reshape(1, -1), (30,))[0]
    wanted = words | mask if to else words & ~mask
    same(struck, wanted.view(np.float32))
    assert 0 < (struck != value).sum() < 30  # half of the signs are so already


def test_integers_of_a_tensor_of_channels_and_of_a_given_scale(randn):
    weight = randn(4, 6, dtype=torch.float64)
    for bits, top in ((8, 127), (4, 7), (3, 3)):
        of_tensor = BitFlip(0.1, format=f"int{bits}").displacement(weight)
        assert torch.equal(of_tensor, BitFlip(0.1, bits=bits).displacement(weight))
        of_channel = BitFlip(0.1, format=f"int{bits}", scale="channel").displacement(weight)
        for row, found in zip(weight, of_channel, strict=True):
            assert torch.equal(found, BitFlip(0.1, bits=bits).displacement(row))
        given = BitFlip(0.1, format=f"int{bits}", scale=float(weight.abs().max() / top))
        torch.testing.assert_close(given.displacement(weight), of_tensor)
    positive = weight.abs()
    scale = float(positive.max() / 255)
    found = BitFlip(0.1, format="uint8").displacement(positive)
    words = (positive / scale).round().long()
    for bit in range(8):
        wanted = ((words ^ (1 << bit)) - words).double() * scale
        torch.testing.assert_close(found[..., bit], wanted)


def test_what_rounding_to_a_word_took_off_stays_off():
    """As with fixed point: a value between two words changes by what its word does."""
    value = torch.tensor([1.001], dtype=torch.float64)
    e = torch.zeros(1, 16)
    e[0, 15] = 1
    struck = BitFlip(0.1, format="bfloat16").perturb(value, e, (1,))
    assert struck.item() == pytest.approx(1.001 - 2.0, abs=1e-15)  # the word is 1.0
    none = BitFlip(0.1, format="bfloat16").perturb(value, torch.zeros(1, 16), (1,))
    assert none.item() == value.item()


UPSETS = {
    2: (7, lambda mask, bit: 3 << bit),
    3: (6, lambda mask, bit: 7 << bit),
    "word": (1, lambda mask, bit: 255),
}


@pytest.mark.parametrize("upset", UPSETS)
def test_neighbouring_bits(upset):
    count, mask = UPSETS[upset]
    fault = BitFlip(0.1, format="float8_e5m2", upset=upset)
    assert fault.coordinate_count((5,)) == 5 * count
    assert fault.masks == tuple(mask(0, bit) for bit in range(count))
    value = torch.tensor([0.5, -1.75, 3.0])
    words = value.numpy().astype(ml_dtypes.float8_e5m2).view(np.uint8)
    for struck in range(count):
        e = torch.zeros(3, count)
        e[:, struck] = 1
        found = fault.perturb(value, e.reshape(1, -1), (3,))[0]
        flipped = (words ^ np.uint8(mask(0, struck))).view(ml_dtypes.float8_e5m2)
        same(found, flipped.astype(np.float64))


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 2)])
def test_rows_and_columns(shape, randn):
    value = randn(*shape, dtype=torch.float32)
    flat = value.reshape(shape[0], -1) if len(shape) > 1 else value.reshape(1, -1)
    words = flat.numpy().view(np.uint32)
    for upset, lines in (("row", flat.shape[0]), ("column", flat.shape[1])):
        fault = BitFlip(0.1, format="float32", bits=[3, 31], upset=upset)
        assert fault.coordinate_count(shape) == 2 * lines
        e = torch.zeros(lines, 2)
        e[-1, 1] = 1  # the sign bits of the last line
        found = fault.perturb(value, e.reshape(1, -1), shape)[0].reshape(flat.shape)
        wanted = words.copy()
        part = wanted[-1] if upset == "row" else wanted[:, -1]
        part ^= np.uint32(1 << 31)
        same(found, wanted.view(np.float32))


BAD = {
    "unknown format": ({"format": "float12"}, "float12"),
    "too wide": ({"format": "int64"}, "int64"),
    "a width and a format": ({"format": "float32", "bits": 8}, r"give bits=\[8\]"),
    "exponent of integers": ({"format": "int8", "bits": "exponent"}, "words of int8 have none"),
    "bit 8 of 8": ({"format": "int8", "bits": [8]}, "have 8 bits"),
    "scale of floats": ({"format": "float32", "scale": 0.1}, "no scale"),
    "scale of what is stored": ({"format": "stored", "scale": 0.1}, "has its own"),
    "negative scale": ({"format": "int8", "scale": -1.0}, "scale=-1.0"),
    "upset": ({"format": "int8", "upset": "diagonal"}, "upset='diagonal'"),
    "more neighbours than bits": ({"format": "int8", "bits": [1, 3], "upset": 2}, "give fewer"),
    "bits": ({"format": "int8", "bits": "some"}, "bits='some'"),
}


@pytest.mark.parametrize("case", BAD)
def test_words_that_make_no_sense(case):
    arguments, told = BAD[case]
    with pytest.raises(ArgumentError, match=told):
        BitFlip(0.1, **arguments)
    with pytest.raises(ArgumentError, match="BitStuck: to=2"):
        BitStuck(0.1, to=2)


def test_a_part_of_a_bit_means_nothing(randn):
    value = randn(3, dtype=torch.float32)
    e = torch.zeros(1, 3 * 32)
    e[0, 40] = 0.01
    found = BitFlip(0.1, format="float32").perturb(value, e, (3,))[0]
    assert torch.isnan(found).tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], value[[0, 2]])


def test_fixed_point_is_what_it_was():
    assert BitFlip(0.1) == BitFlip(0.1, bits=8) == BitFlip(0.1, 8)
    assert BitFlip(0.1).to_dict() == {"fault": "bit-flip", "p": 0.1, "bits": 8}
    assert BitFlip(0.1).strikes == "weights"
    assert BitFlip(0.1, bits="sign").format == "stored"
    assert BitFlip(0.1, format="float16").to_dict() == {
        "fault": "bit-flip",
        "p": 0.1,
        "format": "float16",
    }
    assert "fixed point" in BitFlip.__doc__


@pytest.mark.parametrize("kind", [BitFlip, BitStuck])
@pytest.mark.parametrize(
    "options",
    [
        {"format": "int8"},
        {"format": "int4", "scale": "channel"},
        {"format": "uint8", "scale": 0.01},
        {"format": "int8", "bits": [7, 2]},
        {"format": "int16"},
    ],
)
def test_what_bits_add_a_few_values_at_a_time(kind, options):
    """To the last bit what it is of the whole tensor at once."""
    value = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    value = value.abs() if options["format"].startswith("u") else value
    fault = kind(1e-3, **options)
    steps, whole = BitSteps.of(fault, value), fault.displacement(value).reshape(30, -1)
    assert (whole != 0).any()
    for low in range(0, 30, 7):
        assert torch.equal(steps.of_values(slice(low, low + 7)), whole[low : low + 7])
