"""Training: it learns, it is deterministic, and it leaves the generators alone."""

import pytest
import torch

from crashsim.errors import ArgumentError
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data, load_data
from crashsim.training.classifier import Recipe, accuracy, train_classifier


def trained(recipe):
    net = parse_architecture("64-32-10:relu").build(0)
    loss = train_classifier(net, load_data("digits", "train"), recipe)
    return net, loss


def test_it_learns_the_digits():
    net, loss = trained(Recipe(epochs=15))
    assert accuracy(net, load_data("digits")) > 0.93
    assert loss < 0.2
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_same_seed_same_weights(dropout):
    nets = [trained(Recipe(epochs=1, dropout=dropout, seed=s))[0] for s in (0, 0, 1)]
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert not torch.equal(nets[0][0].weight, nets[2][0].weight)
    assert not any(m._forward_hooks for m in nets[0].modules())


def test_it_trains_under_no_grad():
    with torch.no_grad():
        assert trained(Recipe(epochs=1))[1] > 0


def test_progress():
    seen = []
    net = parse_architecture("64-10").build()
    train_classifier(
        net, load_data("digits", "train").first(64), Recipe(epochs=3), lambda *a: seen.append(a)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", v) for v in (0, -1)),
        ("batch", 0),
        *(("learning_rate", v) for v in (0.0, -1.0, float("nan"))),
        *(("dropout", v) for v in (1.0, -0.1, float("nan"))),
        *(("weight_decay", v) for v in (-1.0, float("nan"))),
    ],
)
def test_bad_recipes(name, value):
    with pytest.raises(ArgumentError, match=f"{name}=") as raised:
        Recipe(**{name: value})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (Data("d", torch.zeros(4, 64)), "no targets"),
        (Data("d", torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)), "do not fit"),
        (Data("d", torch.zeros(4, 64), torch.tensor([0, 1, 2, 10])), "classes from 0 to 10"),
        (Data("d", torch.zeros(4, 64), torch.tensor([0, 1, 2, -1])), "classes"),
    ],
)
def test_data_that_does_not_fit(data, told):
    with pytest.raises(ArgumentError, match=told):
        train_classifier(parse_architecture("64-10").build(), data, Recipe(epochs=1))
