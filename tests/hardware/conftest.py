"""Networks trained once for the whole folder."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from crashsim_hardware import AvgPool2d, Conv2d, Flatten, Linear, Network, NeuronLayer


@dataclass(frozen=True)
class Trained:
    """A network with the inputs it was trained on and unseen ones."""

    network: Network
    train: Any
    test: Any


@cache
def _digits(activation: str, widths: tuple[int, ...], seed: int) -> Trained:
    datasets = pytest.importorskip("sklearn.datasets")
    neural = pytest.importorskip("sklearn.neural_network")
    x, y = datasets.load_digits(return_X_y=True)
    x = x / 16.0
    name = {"relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}[activation]
    model = neural.MLPClassifier(
        widths, activation=name, max_iter=60, alpha=1e-3, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn counts 60 epochs as not converged
        model.fit(x[:1300], y[:1300])
    layers = [
        NeuronLayer(Linear(weight.T, bias), activation if index < len(widths) else "linear")
        for index, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True))
    ]
    return Trained(Network(layers, (64,)), x[:1300], x[1300:])


@pytest.fixture(scope="session")
def digits() -> Callable[..., Trained]:
    """digits(activation, widths, seed) -> a trained 64-...-10 network."""

    def trained(
        activation: str = "relu", widths: tuple[int, ...] = (100, 50), seed: int = 0
    ) -> Trained:
        return _digits(activation, widths, seed)

    return trained


def small_network(activation: str = "relu", seed: int = 0) -> Network:
    """A random 5-8-6-3 network."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    sizes = (5, 8, 6, 3)
    layers = [
        NeuronLayer(
            Linear(rng.normal(0.0, 1.0 / np.sqrt(n), (m, n)), rng.normal(0.1, 0.1, m)),
            activation if index < 2 else "linear",
        )
        for index, (n, m) in enumerate(itertools.pairwise(sizes))
    ]
    return Network(layers, (5,))


def convolutional(activation: str = "relu", seed: int = 0) -> Network:
    """A random network with padding, groups, pooling before and after, and a dense end."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    return Network(
        [
            NeuronLayer(
                Conv2d(rng.normal(0, 0.5, (4, 1, 3, 3)), rng.normal(0, 0.1, 4), padding=1),
                activation,
            ),
            NeuronLayer(
                (
                    AvgPool2d(2),
                    Conv2d(
                        rng.normal(0, 0.5, (6, 2, 3, 3)), rng.normal(0, 0.1, 6), padding=1, groups=2
                    ),
                ),
                activation,
            ),
            NeuronLayer(
                (
                    AvgPool2d(2),
                    Flatten(),
                    Linear(rng.normal(0, 0.4, (10, 24)), rng.normal(0, 0.1, 10)),
                ),
                activation,
            ),
            NeuronLayer(Linear(rng.normal(0, 0.5, (3, 10)), np.zeros(3)), "linear"),
        ],
        (1, 8, 8),
    )


@pytest.fixture
def tiny() -> Callable[..., Network]:
    """tiny(activation, seed) -> a random 5-8-6-3 network."""
    return small_network


@pytest.fixture
def conv() -> Callable[..., Network]:
    """conv(activation, seed) -> a random convolutional network on (1, 8, 8)."""
    return convolutional


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of the test's own."""
    return np.random.Generator(np.random.Philox(key=12345))
