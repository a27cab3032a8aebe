"""Metrics by name against torch's losses, sorting, and counting by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crashsim.errors import ArgumentError
from crashsim.metrics import NAMES, AskedMetrics

SAMPLES, EXAMPLES, CLASSES = 7, 40, 9


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def measured(metric, outputs, clean, targets, shape=None):
    """(S,) a metric of each sample."""
    asked = AskedMetrics.of([metric], targets, clean, shape)
    return asked.of_sums(asked.columns(outputs, clean).sum(1), len(clean))[:, 0]


@pytest.fixture
def case():
    clean = drawn(EXAMPLES, CLASSES)
    outputs = clean + drawn(SAMPLES, EXAMPLES, CLASSES, seed=1)
    targets = np.random.default_rng(2).integers(0, CLASSES, EXAMPLES)
    return outputs, clean, targets


def test_classes_against_sorting(case):
    outputs, clean, targets = case
    order = np.argsort(-outputs, -1)
    usual = np.argsort(-clean, -1)
    now = order[..., 0]
    wanted = {
        "accuracy": (now == targets).mean(1),
        "error-rate": (now != targets).mean(1),
        "top-3": (order[..., :3] == targets[:, None]).any(-1).mean(1),
        "top-5": (order[..., :5] == targets[:, None]).any(-1).mean(1),
        "class-change": (now != usual[:, 0]).mean(1),
        "sdc-1": (now != usual[:, 0]).mean(1),
        "sdc-5": ~(usual[:, :5] == now[..., None]).any(-1),
        "due": np.zeros(SAMPLES),
    }
    wanted["sdc-5"] = wanted["sdc-5"].mean(1)
    for name, values in wanted.items():
        np.testing.assert_allclose(measured(name, outputs, clean, targets), values, err_msg=name)
        assert name == "due" or len(set(values)) > 2


def test_losses_against_torch(case):
    outputs, clean, targets = case
    found = measured("cross-entropy", outputs, clean, targets)
    soft = F.softmax(torch.tensor(outputs), -1).numpy()
    own = [float(F.cross_entropy(torch.tensor(o), torch.tensor(targets))) for o in outputs]
    np.testing.assert_allclose(found, own)
    # Of a network that ends in a softmax, the outputs are the probabilities.
    of_soft = measured("cross-entropy", soft, F.softmax(torch.tensor(clean), -1).numpy(), targets)
    np.testing.assert_allclose(of_soft, own)
    np.testing.assert_allclose(measured("perplexity", outputs, clean, targets), np.exp(own))
    wide = drawn(EXAMPLES, CLASSES, seed=3)
    for name, loss in (("mse", F.mse_loss), ("mae", F.l1_loss)):
        own = [float(loss(torch.tensor(o), torch.tensor(wide))) for o in outputs]
        np.testing.assert_allclose(measured(name, outputs, clean, wide), own)


@pytest.mark.parametrize("classes_last", [True, False])
def test_positions_against_torch(classes_last):
    """Pixels with the classes first, or tokens with the classes last; some do not count."""
    shape = (6, 4) if classes_last else (4, 3, 2)
    axis = -1 if classes_last else 1
    rng = np.random.default_rng(5)
    clean = rng.normal(size=(10, 24))
    outputs = clean + rng.normal(size=(3, 10, 24))
    targets = rng.integers(0, 4, (10, 6) if classes_last else (10, 3, 2))
    targets[rng.random(targets.shape) < 0.2] = -100
    apart = torch.tensor(outputs).reshape(3, 10, *shape)
    of_torch = torch.tensor(targets)
    counts = of_torch != -100
    losses, right, overlaps, changed = [], [], [], []
    before = torch.tensor(clean).reshape(10, *shape).argmax(axis)
    for each in apart:
        flat = each.transpose(1, 2) if classes_last else each
        losses.append(float(F.cross_entropy(flat, of_torch, ignore_index=-100)))
        now = each.argmax(axis)
        right.append(float((now == of_torch)[counts].double().mean()))
        changed.append(float((now != before)[counts].double().mean()))
        each_class = [
            float(((now == c) & (of_torch == c))[counts].sum())
            / float(((now == c) | (of_torch == c))[counts].sum())
            for c in range(4)
        ]
        overlaps.append(np.mean(each_class))
    for name, own in {
        "cross-entropy": losses,
        "perplexity": np.exp(losses),
        "accuracy": right,
        "error-rate": 1 - np.array(right),
        "mean-iou": overlaps,
        "class-change": changed,
        "sdc-1": changed,
    }.items():
        found = measured(name, outputs, clean, targets, shape)
        np.testing.assert_allclose(found, own, err_msg=name)
        assert len(set(np.round(own, 9))) > 1


@pytest.mark.parametrize("shape", [(10, 1), (10,), (10, 24)])
def test_silent_corruption_looks_at_no_targets_of_another_shape(shape):
    """Each position counts once, whether the targets are one of each example or of each output."""
    clean = drawn(10, 24)
    outputs = clean + drawn(3, 10, 24, seed=1)
    now, before = (a.reshape(*a.shape[:-1], 6, 4).argmax(-1) for a in (outputs, clean))
    targets = np.zeros(shape, np.int64 if len(shape) == 1 or shape[1] == 1 else np.float64)
    for name in ("sdc-1", "class-change"):
        found = measured(name, outputs, clean, targets, (6, 4))
        np.testing.assert_allclose(found, (now != before).mean((1, 2)), err_msg=name)


@pytest.mark.parametrize(
    "name", ["accuracy", "error-rate", "top-2", "cross-entropy", "perplexity", "mean-iou"]
)
def test_targets_that_no_example_of_one_class_has(case, name):
    """An example without a class is neither right nor wrong; a later one is looked at, too."""
    outputs, clean, targets = case
    asked = AskedMetrics.of([name], targets, clean)
    for wrong, why in ((CLASSES, "the model has 9"), (-1, "the model has 9"), (-100, "no class")):
        later = targets.copy()
        later[-1] = wrong
        with pytest.raises(ArgumentError, match=f"'{name}'.*{why}"):
            AskedMetrics.of([name], later, clean)
        with pytest.raises(ArgumentError, match=f"'{name}'.*{why}"):
            asked.at(later).columns(outputs, clean)
    with pytest.raises(ArgumentError, match="whole numbers"):
        asked.at(targets + 0.5).columns(outputs, clean)


def test_a_class_that_is_nowhere_is_left_out_of_mean_iou():
    clean = np.zeros((1, 8))
    outputs = np.array([[[3, 0, 0, 0, 0, 1, 0, 0.0]]])  # 4 classes, 2 positions: classes 0 and 2
    found = measured("mean-iou", outputs, clean, np.array([[0, 0]]), (4, 2))
    np.testing.assert_allclose(found, np.mean([1 / 2, 0]))


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite(case, lost):
    outputs, clean, targets = case
    outputs = outputs.copy()
    outputs[0, :4, 2] = lost
    outputs[1, 0] = lost
    for name, share in (("accuracy", 0), ("error-rate", 4), ("class-change", 4), ("sdc-1", 0)):
        rest = measured(name, outputs[:1, 4:], clean[4:], targets[4:])[0] * (EXAMPLES - 4)
        assert measured(name, outputs, clean, targets)[0] == pytest.approx(
            (rest + share) / EXAMPLES
        ), name
    due = measured("due", outputs, clean, targets)
    np.testing.assert_allclose(due, [4 / EXAMPLES, 1 / EXAMPLES, *[0] * 5])
    for name in ("cross-entropy", "perplexity"):
        found = measured(name, outputs, clean, targets)
        assert np.isinf(found[:2]).all()
        assert np.isfinite(found[2:]).all()
    for name in ("mse", "mae"):
        assert np.isinf(measured(name, outputs, clean, clean)[:2]).all()


def test_ties_go_to_the_first_class():
    outputs = np.array([[[1.0, 1.0, 0.0]]])
    clean = np.zeros((1, 3))
    assert measured("accuracy", outputs, clean, np.array([0])) == 1
    assert measured("accuracy", outputs, clean, np.array([1])) == 0
    assert measured("top-2", outputs, clean, np.array([1])) == 1
    assert measured("top-2", outputs, clean, np.array([2])) == 0


def test_functions_of_ones_own(case):
    outputs, clean, targets = case

    def hinge(outputs, targets):
        return F.multi_margin_loss(outputs, targets, reduction="none")

    found = measured(hinge, outputs, clean, targets)
    own = [float(F.multi_margin_loss(torch.tensor(o), torch.tensor(targets))) for o in outputs]
    np.testing.assert_allclose(found, own)
    assert AskedMetrics.of([hinge], targets, clean).metrics[0].name == "hinge"
    named = AskedMetrics.of([lambda o, t: o.argmax(-1) == t], targets, clean).metrics[0]
    assert type(named).__name__ == "Event"


@pytest.mark.parametrize(
    ("metric", "targets", "told"),
    [
        ("accurate", [0] * 4, "choose among accuracy"),
        ("top-0", [0] * 4, "choose among"),
        ("accuracy", None, "give targets="),
        ("accuracy", [0, 1, 2, 3], "the class 3, and the model has 3"),
        ("accuracy", [0, 1, 2, -1], "the class -1"),
        ("accuracy", [0.5, 1, 2, 1], "whole numbers"),
        ("accuracy", np.zeros((4, 2), int), "do not fit"),
        ("mse", [0, 1, 2, 1], "a number for each of 3 outputs"),
        ("mse", np.full((4, 3), np.nan), "NaN"),
        (F.cross_entropy, np.zeros(4, int), "reduction='none'"),
        (lambda o, t: 1 / 0, np.zeros(4, int), "ZeroDivisionError"),
        (3, None, "give a name"),
    ],
)
def test_wrong_use(metric, targets, told):
    clean = drawn(4, 3)
    with pytest.raises(ArgumentError, match=told):
        AskedMetrics.of([metric], targets, clean)


def test_one_output_has_no_classes():
    with pytest.raises(ArgumentError, match="one output"):
        AskedMetrics.of(["accuracy"], [0, 0], np.zeros((2, 1)))


def test_every_name_is_measured(case):
    outputs, clean, targets = case
    for name in NAMES:
        goals = drawn(EXAMPLES, CLASSES, seed=8) if name in ("mse", "mae") else targets
        assert all(map(math.isfinite, measured(name, outputs, clean, goals))), name
