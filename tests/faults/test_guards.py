"""Guarded words against decoders written here, bit by bit: all errors of small memories."""

import itertools

import numpy as np
import pytest
import torch

from crashsim import SECDED, TMR, BitFlip, BitStuck, Duplication, Parity, SpareCells
from crashsim.errors import ArgumentError
from crashsim.faults.words import GuardedWords, IntegerFormat
from crashsim.model.sites.site import Site

VALUES = torch.tensor([7.0, -3.0])  # words of int4 with a scale of 1
FLIP = BitFlip(0.1, format="int4", scale=1.0)


def site_of(value):
    return Site("w", "parameter", tuple(value.shape), "w")


def guarded(scheme, fault=FLIP, value=VALUES):
    shape = tuple(value.shape)
    return GuardedWords.of(fault, [scheme.guard(fault, site_of(value), shape)], shape)


def every(n):
    return np.array(list(itertools.product([0, 1], repeat=n)), dtype=np.uint8)


def read(fault, errors, value=VALUES):
    """What the fault makes of all these errors, whichever way it is asked."""
    whole = fault.perturb(value, torch.from_numpy(errors), tuple(value.shape))
    rows, columns = np.nonzero(errors)
    row, unit, mask = fault.hits(rows, columns, tuple(value.shape))
    table = fault.table(value)
    listed = value.reshape(-1).repeat(len(errors), 1)
    listed[row, unit] = table.struck(torch.from_numpy(unit), torch.from_numpy(mask))
    torch.testing.assert_close(listed.view(whole.shape), whole, equal_nan=True, rtol=0, atol=0)
    return whole.numpy()


def word(bits):
    value = sum(int(b) << i for i, b in enumerate(bits))
    return value - 16 if value > 7 else value


def bits_of(value):
    return [int(value) >> i & 1 for i in range(4)]


STORED = bits_of(7) + bits_of(-3)


def hamming_read(error, then):
    """A decoder of stored bits: encodes the data, flips, looks for the syndrome's column."""
    columns = SECDED(data=8).code.columns
    checks = [sum(b for b, c in zip(STORED, columns, strict=False) if c >> i & 1) % 2
              for i in range(5)]  # fmt: skip
    memory = [b ^ int(e) for b, e in zip(STORED + checks, error, strict=True)]
    syndrome = 0
    for i in range(5):
        parity = sum(b for b, c in zip(memory, columns, strict=True) if c >> i & 1) % 2
        syndrome |= parity << i
    if syndrome and syndrome not in columns:
        return {"zero": [0, 0], "last": [7, -3], "stop": [np.nan, np.nan]}[then]
    if syndrome:
        memory[columns.index(syndrome)] ^= 1
    return [word(memory[:4]), word(memory[4:8])]


@pytest.mark.parametrize("then", ["zero", "last", "stop"])
def test_secded_reads_every_error_as_a_decoder_of_stored_bits(then):
    fault, errors = guarded(SECDED(data=8, on_detection=then)), every(13)
    found = read(fault, errors)
    np.testing.assert_array_equal(found, [hamming_read(e, then) for e in errors])
    assert len(np.unique(found[~np.isnan(found).any(1)], axis=0)) > 20  # many are miscorrected


def test_the_law_of_a_block_is_that_of_its_reads():
    p, scheme = 0.07, SECDED(data=8, on_detection="stop")
    errors = every(13)
    chance = p ** errors.sum(1) * (1 - p) ** (13 - errors.sum(1))
    found = read(guarded(scheme), errors)
    stopped, right = np.isnan(found).any(1), (found == [7, -3]).all(1)
    law = scheme.law(p)
    assert chance[stopped].sum() == pytest.approx(law.detected, rel=1e-12)
    assert chance[right].sum() == pytest.approx(law.right, rel=1e-12)
    assert law.silent
    assert chance[~right & ~stopped].sum() == pytest.approx(law.silent, rel=1e-12)


def test_a_last_block_that_is_shorter_corrects_no_bit_that_is_not_there():
    """Blocks of 6 and 2 data bits: each as the code of its own length does."""
    scheme = SECDED(data=6, on_detection="stop")
    checks = scheme.code.checks
    fault = guarded(scheme)
    assert fault.coordinate_count((2,)) == 8 + 2 * checks
    p, errors = 0.1, every(2 + checks)
    whole = np.zeros((len(errors), 8 + 2 * checks), dtype=np.uint8)
    whole[:, 6:8], whole[:, 8 + checks :] = errors[:, :2], errors[:, 2:]
    found = read(fault, whole)
    chance = p ** errors.sum(1) * (1 - p) ** (2 + checks - errors.sum(1))
    law = scheme.code.shortened(2).law(p)
    assert chance[np.isnan(found).any(1)].sum() == pytest.approx(law.detected, rel=1e-12)
    assert chance[(found == [7, -3]).all(1)].sum() == pytest.approx(law.right, rel=1e-12)


@pytest.mark.parametrize("then", ["zero", "last", "stop"])
def test_parity_sees_an_odd_number_of_flips_of_a_word(then):
    errors = every(10)
    found = read(guarded(Parity(on_detection=then)), errors)
    for error, values in zip(errors, found, strict=True):
        for which, clean in enumerate((7, -3)):
            own = error[4 * which : 4 * which + 4]
            wanted = word(np.array(bits_of(clean)) ^ own)
            if (own.sum() + error[8 + which]) % 2:
                wanted = {"zero": 0, "last": clean, "stop": np.nan}[then]
            np.testing.assert_equal(values[which], wanted)


def test_two_copies_are_believed_where_they_agree():
    errors = every(8)  # one word of 4 bits and its copy
    value = VALUES[:1]
    found = read(guarded(Duplication(on_detection="zero"), value=value), errors, value)
    for error, values in zip(errors, found, strict=True):
        one, other = (word(np.array(bits_of(7)) ^ part) for part in (error[:4], error[4:]))
        assert values[0] == (one if one == other else 0)


def test_three_copies_vote_bit_by_bit():
    errors = every(12)
    value = VALUES[:1]
    found = read(guarded(TMR(of="words"), value=value), errors, value)
    copies = errors.reshape(-1, 3, 4)
    wanted = [word(np.array(bits_of(7)) ^ (c.sum(0) > 1)) for c in copies]
    np.testing.assert_array_equal(found[:, 0], wanted)


@pytest.mark.parametrize("fault", [BitStuck(0.1, to=0, format="int4", scale=1.0), FLIP])
def test_spares_replace_the_first_struck_words_if_they_are_whole(fault):
    value = torch.tensor([[7.0, -3.0, 5.0]])
    scheme = SpareCells(spares=2, per="layer")
    assert guarded(scheme, fault, value).coordinate_count((1, 3)) == 12 + 8
    rng = np.random.default_rng(0)
    errors = (rng.random((4000, 20)) < 0.12).astype(np.uint8)
    found = read(guarded(scheme, fault, value), errors, value)
    for error, values in zip(errors, found[:, 0], strict=True):
        whole = sum(not error[12 + 4 * i : 16 + 4 * i].any() for i in range(2))
        for which, clean in enumerate((7, -3, 5)):
            own = error[4 * which : 4 * which + 4]
            if own.any() and whole:
                whole, own = whole - 1, 0 * own
            bits = np.array(bits_of(clean))
            struck = bits ^ own if fault is FLIP else bits & ~own & 1
            assert values[which] == word(struck)


def test_bits_that_are_not_guarded_are_struck_as_they_were():
    scheme = SECDED(data=8, bits=[3])  # the sign alone
    errors = every(8 + scheme.code.checks)[:: 2**scheme.code.checks]  # whole check bits
    found = read(guarded(scheme), errors)
    for error, values in zip(errors, found, strict=True):
        signs = error[[3, 7]]
        if signs.sum() == 2:
            np.testing.assert_array_equal(values, [0, 0])
            continue
        own = error.copy()
        own[[3, 7]] = 0
        wanted = [word(np.array(STORED[:4]) ^ own[:4]), word(np.array(STORED[4:]) ^ own[4:8])]
        np.testing.assert_array_equal(values, wanted)


def test_runs_of_flips_meet_the_code_bit_by_bit():
    """An upset of two neighbours is a double error: detected; two overlapping ones are two bits."""
    fault = BitFlip(0.1, format="int4", scale=1.0, upset=2)
    own = guarded(SECDED(data=8), fault)
    errors = np.zeros((2, own.coordinate_count((2,))), dtype=np.uint8)
    errors[0, 0] = 1  # bits 0 and 1
    errors[1, :2] = 1  # bits 0 and 1, 1 and 2: 1 twice
    np.testing.assert_array_equal(read(own, errors), [[0, 0], [0, 0]])


def test_floats_share_blocks_and_wide_words_are_refused():
    value = torch.tensor([0.5, -2.0, 3.0])
    fault = BitFlip(0.1, format="float32")
    own = guarded(SECDED(), fault, value)
    assert own.coordinate_count((3,)) == 96 + 2 * 8
    error = np.zeros((1, 112), dtype=np.uint8)
    error[0, [30, 32 + 30]] = 1  # exponents of two words of one block
    np.testing.assert_array_equal(read(own, error, value), [[0.0, 0.0, 3.0]])
    with pytest.raises(ArgumentError, match="at most 62 bits"):
        guarded(SECDED(), BitFlip(0.1, format="float64"), value)


@pytest.mark.parametrize(
    ("scheme", "fault", "told"),
    [
        (SECDED(), BitStuck(0.1, format="int4", scale=1.0), "SpareCells"),
        (SECDED(), BitFlip(count=2, format="int4", scale=1.0), "count"),
        (SECDED(), BitFlip(0.1, format="int4", scale=1.0, upset="row"), "upset"),
        (Parity(), BitFlip(torch.tensor([0.1, 0.2]), format="int4", scale=1.0), "one p"),
        (SECDED(bits=[9]), FLIP, "bits"),
    ],
)
def test_what_guards_do_not_serve_is_refused(scheme, fault, told):
    with pytest.raises(ArgumentError, match=told):
        guarded(scheme, fault)


def test_faults_with_guards_are_equal_by_what_they_guard():
    assert guarded(SECDED()) == guarded(SECDED()) != guarded(SECDED(bits=[3]))
    assert hash(guarded(SECDED())) == hash(guarded(SECDED()))
    assert isinstance(guarded(SECDED()).word, IntegerFormat)
