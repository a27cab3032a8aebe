"""Labelled data in every form: the same examples, in the same order, however they are cut."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from crashsim.errors import ArgumentError
from crashsim.model.labelled import read_labelled

X = torch.arange(46.0).reshape(23, 2)
Y = torch.arange(23) % 3


class OfTokens(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


class WithLabels(nn.Module):
    def forward(self, x, labels):
        return x


class OfTwo(nn.Module):
    def forward(self, first, second):
        return first + second


class Mappings(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"input_ids": X[index], "labels": Y[index]}


class Flow(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class InBatches(Dataset):
    """Batches of 5 examples."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index >= 5:
            raise IndexError(index)
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


class Bare(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index]


PAIRS = TensorDataset(X, Y)
FORMS = {
    "pair": (X, Y),
    "list": [X.numpy(), Y.tolist()],
    "data set": PAIRS,
    "loader": DataLoader(PAIRS, batch_size=5),
    "data set of batches": DataLoader(InBatches(), batch_size=None),
    "batches in any order": DataLoader(InBatches(), batch_size=None, shuffle=True),
    "shuffled": DataLoader(PAIRS, batch_size=4, shuffle=True),
    "batches": DataLoader(
        PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 6, drop_last=False)
    ),
    "all of a random subset": DataLoader(
        PAIRS, batch_size=6, sampler=SubsetRandomSampler(range(23))
    ),
    "stream": Flow(),
    "loader of a stream": DataLoader(Flow(), batch_size=9),
}


def read(form, model=None, targets=None, size=4):
    found = read_labelled(form, targets, model or nn.Identity())
    pieces = list(found.pieces(size))
    inputs = torch.cat([piece.tensors[0] for piece, _ in pieces])
    labels = None if pieces[0][1] is None else np.concatenate([labels for _, labels in pieces])
    return found, [len(piece) for piece, _ in pieces], inputs, labels


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_every_form_gives_the_same_examples(name, size):
    before = torch.get_rng_state()
    found, sizes, inputs, labels = read(FORMS[name], size=size)
    assert found.count == 23
    assert sizes == [size] * (23 // size) + ([23 % size] if 23 % size else [])
    assert torch.equal(inputs, X)
    np.testing.assert_array_equal(labels, Y)
    assert found.has_targets
    assert len(found.first(6)[0]) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_beside_and_none():
    _, _, inputs, labels = read(X, targets=Y)
    assert torch.equal(inputs, X)
    np.testing.assert_array_equal(labels, Y)
    for form in (X, Bare()):
        found, _, inputs, labels = read(form)
        assert labels is None
        assert not found.has_targets
        assert torch.equal(inputs, X)


def test_mappings_as_in_batches_of_transformers():
    mask = torch.ones(23)
    for form in ({"input_ids": X, "attention_mask": mask, "labels": Y}, Mappings()):
        found = read_labelled(form, None, OfTokens())
        inputs, labels = found.first(23)
        np.testing.assert_array_equal(labels, Y)
        assert "labels" not in inputs.names
        assert torch.equal(inputs.tensors[0], X)
    # A model that takes labels keeps them.
    kept = read_labelled({"x": X, "labels": Y}, None, WithLabels())
    assert not kept.has_targets
    assert set(kept.first(1)[0].names) == {"x", "labels"}


def test_two_tensors_are_two_inputs_of_a_model_that_takes_two():
    found = read_labelled((X, X), None, OfTwo())
    assert not found.has_targets
    assert len(found.first(1)[0].tensors) == 2


def test_a_part_of_a_data_set():
    loader = DataLoader(PAIRS, batch_size=6, sampler=SubsetRandomSampler([3, 11, 7]))
    _, _, inputs, labels = read(loader)
    assert torch.equal(inputs, X[[3, 7, 11]])
    np.testing.assert_array_equal(labels, Y[[3, 7, 11]])


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


class Twice(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"x": X[index], "labels": Y[index], "targets": Y[index]}


class Texts(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return "text"


@pytest.mark.parametrize(
    ("form", "targets", "told"),
    [
        ((X, Y), Y, "give them once"),
        (PAIRS, Y, "leave it out"),
        (DataLoader(PAIRS, batch_size=None), None, "batch_size, such as 32"),
        ((X, Y[:5]), None, "a row for each"),
        (X, "abc", "a row for each"),
        (Empty(), None, "no examples"),
        (Twice(), None, "name the targets once"),
        (Texts(), None, "got str|give tensors"),
    ],
)
def test_wrong_use(form, targets, told):
    with pytest.raises(ArgumentError, match=told):
        read_labelled(form, targets, nn.Identity())
