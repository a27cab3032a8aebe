"""Shared by the tests of crashsim: nothing global, and no model, may be changed by an analysis."""

import itertools
import os
import random
import sys
import warnings
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - its first import draws from Python's global generator
import torch
from torch import nn

from crashsim.cli import main

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "linear": nn.Identity,
}


def _global_state():
    kind, keys, *rest = np.random.get_state()
    return {
        "torch RNG": torch.get_rng_state().tolist(),
        "numpy RNG": (kind, keys.tolist(), *rest),
        "python RNG": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def _nothing_global_changes(request):
    """Fails a test of crashsim after which a global generator or mode differs."""
    if request.path.parent.name in (
        "theory",
        "hardware",
        "training",
    ):  # which train, or know no torch
        yield
        return
    before = _global_state()
    yield
    after = _global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"changed: {changed}"


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _model_state(model):
    tensors = {k: v.detach().clone() for k, v in model.named_parameters()}
    tensors |= {k: v.detach().clone() for k, v in model.named_buffers()}
    return {
        "tensors": {k: (v.dtype, v.cpu().double().tolist()) for k, v in tensors.items()},
        "identity": {k: id(v) for k, v in model.named_parameters()},
        "gradients": {k: (v.requires_grad, v.grad is None) for k, v in model.named_parameters()},
        "training": {k: m.training for k, m in model.named_modules()},
        "hooks": {
            (k, name): list(getattr(m, name)) for k, m in model.named_modules() for name in _HOOKS
        },
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
    }


@pytest.fixture
def watch():
    """``watch(model)`` returns the model and fails the test if it differs at the end."""
    watched = []

    def register(model):
        watched.append((model, _model_state(model)))
        return model

    yield register
    for model, before in watched:
        after = _model_state(model)
        for name, state in before.items():
            assert after[name] == state, f"{type(model).__name__}: {name} changed"


@pytest.fixture
def randn():
    """``randn(*shape, seed=0)``: normal numbers that leave the global generator alone."""

    def draw(*shape, seed=0, dtype=torch.float32):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return draw


@pytest.fixture
def seeded():
    """``seeded(build, seed)``: what ``build()`` returns, drawn from the seed, in eval mode."""

    def build_seeded(build, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build().eval()

    return build_seeded


@pytest.fixture
def make_net(seeded):
    """``make_net((3, 4, 2), "tanh", seed)``: a feed-forward net ``linear1``, ``act1``, ..."""

    def make(sizes, activation="tanh", seed=0, scale=1.0, dtype=torch.float32):
        def build():
            layers = OrderedDict()
            for i, (a, b) in enumerate(itertools.pairwise(sizes), start=1):
                layers[f"linear{i}"] = nn.Linear(a, b)
                if i < len(sizes) - 1 and activation != "linear":
                    layers[f"act{i}"] = ACTIVATIONS[activation]()
            return nn.Sequential(layers)

        net = seeded(build, seed).to(dtype)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(scale)
        return net

    return make


class ResidualConvNet(nn.Module):
    """A convolution, a residual block with batch norm and an in-place ReLU, pooling, a linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)  # called twice
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(2 * 2 * 2, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(x + self.conv(x))
        return self.head(torch.flatten(self.pool(x), 1))


@pytest.fixture
def residual_net(seeded):
    """A residual convolutional net for (1, 4, 4) images, with settled batch-norm statistics."""

    def build():
        net = ResidualConvNet()
        net.norm.running_mean.copy_(torch.tensor([0.1, -0.2]))
        net.norm.running_var.copy_(torch.tensor([0.5, 2.0]))
        return net

    return seeded(build, 1)


@pytest.fixture
def interrupting():
    """``for stop in interrupting("module", ...): with stop: ...`` interrupts at each line in turn.

    Lines of these modules of crashsim count; with ``every=n``, each n-th alone. A trace function
    stands for the signal. It ends when no line is left to interrupt.
    """

    def turns(*modules, every=1):
        files = tuple(
            os.sep + os.path.join("crashsim", *name.split(".")) + ".py" for name in modules
        )
        target, is_met = 1, True

        @contextmanager
        def interrupt_at(target):
            nonlocal is_met
            is_met, count = False, 0

            def line(frame, event, _):
                nonlocal is_met, count
                count += event == "line"
                if count == target and not is_met:
                    is_met = True
                    raise KeyboardInterrupt
                return line

            def trace(frame, *_):
                return line if frame.f_code.co_filename.endswith(files) else None

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                yield
            finally:
                sys.settrace(before)

        while is_met:
            yield interrupt_at(target)
            target += every
        assert target > 10 * every, "hardly a line was interrupted"

    return turns


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """``run("score", ...)`` returns (exit code, stdout, stderr), run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crashsim", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)
