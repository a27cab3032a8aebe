"""FaultSpace: F(e) against networks written by hand, derivatives, odd models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
    score,
)
from crashsim.coordinates.drawing import sample_block
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, CrashsimWarning, ModelError, NotApplicableError


def points_of(e):
    rows, columns = np.nonzero(e)
    return Points(len(e), np.zeros(e.shape[1]), rows, columns, e[rows, columns])


def random_masks(n, count=20, seed=0):
    return (np.random.default_rng(seed).random((count, n)) < 0.4).astype(float)


def by_hand(net, x, e):
    """linear - tanh - linear - tanh - linear with crashes at input and both tanhs, in numpy."""
    weights = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
        for m in net
        if isinstance(m, nn.Linear)
    ]
    a, start = x.double().numpy(), 0
    for i, (w, b) in enumerate(weights):
        a = a * (1 - e[start : start + a.shape[1]])
        start += a.shape[1]
        a = a @ w.T + b
        if i < len(weights) - 1:
            a = np.tanh(a)
    return a


def test_crashes_of_input_and_hidden_neurons(make_net, watch, randn):
    net, x = watch(make_net((3, 4, 5, 2), dtype=torch.float64)), randn(6, 3, dtype=torch.float64)
    faults = {"input": NeuronCrash(0.1), "hidden": NeuronCrash(0.2)}
    space = FaultSpace(net, x, faults)
    assert (space.N, space.B, space.K) == (12, 6, 2)
    e = random_masks(12)
    found = space.outputs(points_of(e))
    assert found.shape == (20, 6, 2)
    np.testing.assert_allclose(found, [by_hand(net, x, row) for row in e], atol=1e-12)
    np.testing.assert_allclose(space.clean(), by_hand(net, x, np.zeros(12)), atol=1e-12)
    assert np.abs(found - space.clean()).max() > 0.1


def test_coordinates_need_not_be_zero_or_one(make_net, randn):
    net, x = make_net((3, 4, 2), dtype=torch.float64), randn(2, 3, dtype=torch.float64)
    space = FaultSpace(net, x, {"input": GainNoise(0.1), "act1": StuckAt(0.5, 2.0)})
    e = np.random.default_rng(0).normal(size=7)
    w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
    h = np.tanh((x.numpy() * (1 + e[:3])) @ w1.T + b1)
    wanted = (h + e[3:] * (2 - h)) @ w2.T + b2
    np.testing.assert_allclose(space.outputs(Points.at(e))[0], wanted, atol=1e-12)


def test_crashes_of_weights(make_net, watch, randn):
    net, x = watch(make_net((3, 4, 2), dtype=torch.float64)), randn(3, 3, dtype=torch.float64)
    space = FaultSpace(net, x, WeightCrash(0.3))
    e = random_masks(space.N)
    w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
    found = space.outputs(points_of(e))
    for row, outputs in zip(e, found, strict=True):
        first, second = w1 * (1 - row[:12].reshape(4, 3)), w2 * (1 - row[12:].reshape(2, 4))
        wanted = np.tanh(x.numpy() @ first.T + b1) @ second.T + b2
        np.testing.assert_allclose(outputs, wanted, atol=1e-12)
    # The same points in another order give the same outputs: every patch was taken back.
    np.testing.assert_array_equal(space.outputs(points_of(e[::-1])), found[::-1])


def test_weights_and_neurons_at_once_and_biases(make_net, watch, randn):
    net, x = watch(make_net((3, 4, 2), dtype=torch.float64)), randn(3, 3, dtype=torch.float64)
    weights = {"linear2.weight": WeightCrash(0.1), "linear2.bias": WeightCrash(0.1)}
    space = FaultSpace(net, x, {"act1": NeuronCrash(0.3), **weights})
    assert space.N == 4 + 8 + 2
    w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
    for row in random_masks(14, 5):
        h = np.tanh(x.numpy() @ w1.T + b1) * (1 - row[:4])
        wanted = h @ (w2 * (1 - row[4:12].reshape(2, 4))).T + b2 * (1 - row[12:])
        np.testing.assert_allclose(space.outputs(points_of(row[None]))[0], wanted, atol=1e-12)


def test_bit_flips_of_several_bits_of_one_weight(make_net, randn):
    net, x = make_net((2, 2), dtype=torch.float64), randn(1, 2, dtype=torch.float64)
    fault = BitFlip(0.2, bits=4)
    space = FaultSpace(net, x, fault, "weights")
    e = random_masks(16, 8)
    w, b = (p.detach() for p in net.parameters())
    step = fault.displacement(w).numpy()
    wanted = [
        x.numpy() @ (w.numpy() + (r.reshape(2, 2, 4) * step).sum(-1)).T + b.numpy() for r in e
    ]
    np.testing.assert_allclose(space.outputs(points_of(e)), wanted, atol=1e-12)


@pytest.mark.parametrize("site", ["act1", "linear2.weight"])
def test_two_faults_at_one_site_act_one_after_the_other(make_net, watch, randn, site):
    net, x = watch(make_net((3, 4, 2), dtype=torch.float64)), randn(2, 3, dtype=torch.float64)
    space = FaultSpace(net, x, {site: SignFlip(0.5), f"{site}*": StuckAt(0.5, 0.25)})
    n = space.N // 2
    assert [p.site.name for p in space.placements] == [site, site]
    w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
    for row in random_masks(2 * n, 10):
        flip, stuck = row[:n], row[n:]

        def act(a, flip=flip, stuck=stuck):
            return np.where(stuck == 1, 0.25, a * (1 - 2 * flip))

        h = np.tanh(x.numpy() @ w1.T + b1)
        if site == "act1":
            wanted = act(h) @ w2.T + b2
        else:
            wanted = h @ act(w2.ravel()).reshape(w2.shape).T + b2
        found = space.outputs(points_of(row[None]))[0]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(
    "faults",
    [
        {"hidden": NeuronCrash(0.1)},
        {"input": NeuronCrash(0.1)},
        {"weights": WeightCrash(0.1)},
        {"weights": BitFlip(0.1, bits=3)},
        {"input": GainNoise(0.1), "hidden": SignFlip(0.2), "linear2.weight": WeightCrash(0.1)},
        {"act1": NeuronCrash(0.1, group=2), "act*": AdditiveNoise(0.1)},
        {"linear1.weight": WeightCrash(0.1), "linear1.*": GainNoise(0.1)},
    ],
    ids=str,
)
def test_gradients_against_finite_differences(make_net, watch, randn, faults):
    net, x = watch(make_net((3, 4, 2), dtype=torch.float64)), randn(3, 3, dtype=torch.float64)
    space = FaultSpace(net, x, faults)
    at = np.random.default_rng(1).uniform(0, 0.3, space.N)
    gradient = np.empty((space.B, space.K, space.N))
    for part, rows in space.gradients(at):
        gradient[part] = rows
    h = 1e-5
    for i in range(space.N):
        step = h * np.eye(space.N)[i]
        up, down = (space.outputs(Points.at(at + s))[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[:, :, i], (up - down) / (2 * h), atol=1e-8)
    assert np.abs(gradient).max() > 0.01


def test_gradients_of_a_residual_net_with_in_place_relu(residual_net, watch, randn):
    net, x = watch(residual_net), randn(2, 1, 4, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1)).with_dtype(torch.float64)
    assert space.N == 64
    at = np.full(64, 0.1)
    gradient = np.concatenate([rows for _, rows in space.gradients(at)])
    for i in range(0, 64, 7):
        step = 1e-6 * np.eye(64)[i]
        up, down = (space.outputs(Points.at(at + s))[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[:, :, i], (up - down) / 2e-6, atol=1e-6)


def test_a_residual_net_against_its_own_forward(residual_net, watch, randn):
    net, x = watch(residual_net), randn(3, 1, 4, 4)
    space = FaultSpace(net, x, NeuronCrash(0.3))
    e = random_masks(64, 4)
    masks = torch.from_numpy(1 - e).float().reshape(4, 2, 1, 2, 4, 4)
    with torch.no_grad():
        for row, mask in enumerate(masks):
            first = F.relu(net.norm(net.stem(x))) * mask[0]
            second = F.relu(first + net.conv(first)) * mask[1]
            wanted = net.head(torch.flatten(net.pool(second), 1))
            found = space.outputs(points_of(e[row : row + 1]))[0]
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_samples_do_not_depend_on_the_batch_size(make_net, residual_net, randn, monkeypatch):
    cases = [
        (make_net((3, 8, 2), dtype=torch.float64), randn(5, 3), NeuronCrash(0.2)),
        (make_net((3, 8, 2), dtype=torch.float64), randn(5, 3), WeightCrash(0.2)),
        (residual_net.double(), randn(5, 1, 4, 4), NeuronCrash(0.2)),
    ]
    for net, x, fault in cases:
        space = FaultSpace(net, x, fault)
        points = sample_block(space.placements, 0, 0).part(0, 50)
        monkeypatch.undo()
        whole = space.outputs(points)
        # One input, one sample at a time.
        monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 1)
        np.testing.assert_allclose(space.outputs(points), whole, atol=1e-12)
        gradients = [rows for _, rows in space.gradients(space.mean_point)]
        monkeypatch.setattr("crashsim.injection.derivatives._GRADIENT_SCALARS", 1)
        single = [rows for _, rows in space.gradients(space.mean_point)]
        np.testing.assert_allclose(np.concatenate(single), np.concatenate(gradients), atol=1e-12)


def test_single_changes(make_net, randn, monkeypatch):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.2))
    monkeypatch.setattr("crashsim.space._STEP_VALUES", 1)
    base = np.array([0.2, 1.0, 0.2, 1.0])
    found = {int(c): o for cs, os in space.single_changes(base, np.ones(4))
             for c, o in zip(cs, os, strict=True)}  # fmt: skip
    assert sorted(found) == [0, 2]  # the others are 1 already
    at = base.copy()
    at[2] = 1
    np.testing.assert_allclose(found[2], space.outputs(Points.at(at))[0], atol=1e-6)


def test_the_model_is_unchanged_if_a_faulty_forward_raises(seeded, watch, randn):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.sigmoid(self.a(x))
            if (h == 0).any():
                raise RuntimeError("a dead neuron")
            return self.b(h)

    net = watch(seeded(Picky))
    space = FaultSpace(net, randn(2, 3), NeuronCrash(1.0))
    with pytest.raises(RuntimeError, match="dead"):
        space.outputs(Points.at(space.mean_point))
    weights = FaultSpace(net, randn(2, 3), WeightCrash(0.5))
    assert np.isfinite(weights.outputs(Points.at(weights.mean_point))).all()


def test_outputs_that_are_not_finite_under_faults(seeded, watch, randn):
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x):
            h = torch.sigmoid(self.a(x))
            return h / h.sum(1, keepdim=True)

    net = watch(seeded(Divides))
    space = FaultSpace(net, randn(2, 3), NeuronCrash(1.0))
    with pytest.raises(ModelError, match=r"not finite .* under some faults"):
        space.outputs(Points.at(space.mean_point))


class Mutates(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x.mul_(2).add_(1)
        return self.b(torch.tanh(self.a(x)))


def test_other_examples_of_a_model_that_writes_to_its_input(seeded, randn):
    net, x, other = seeded(Mutates), randn(4, 3), randn(6, 3)
    space = FaultSpace(net, x, NeuronCrash(0.2), "a")
    with torch.no_grad():
        expected = net(other.clone())
    one = FaultSpace(net, other, NeuronCrash(0.2), "a")
    moved = space.at_examples(one.examples)
    np.testing.assert_allclose(moved.clean(), expected, rtol=1e-5)
    np.testing.assert_array_equal(one.examples.tensors[0], other)


class Counts(Mutates):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.seen = x.mean(0)
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("model", [Mutates, Counts])
def test_models_that_change_things(model, seeded, watch, randn):
    net = watch(seeded(model))
    x = randn(4, 3)
    before = x.clone()
    faults = {"hidden": NeuronCrash(0.2), "b.weight": WeightCrash(0.1)}
    methods = ["exact", "norm", "taylor", "mean-point-single", "monte-carlo"]
    result = score(net, x, faults, samples=500, methods=methods)
    assert torch.equal(x, before)
    exact, sampled = (result.find(m, "variance") for m in ("exact", "monte-carlo"))
    assert sampled.low / 1.2 < exact.value < sampled.high * 1.2
    array = before.numpy().copy()
    score(net, array, NeuronCrash(0.2), methods="taylor")
    np.testing.assert_array_equal(array, before.numpy())


def returning(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x):
            return function(torch.tanh(self.a(x)))

    return Model


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda h: (h, h), r"returns tuple with several tensors \(0: \(2, 3\), .*readout='0'"),
        (lambda h: {"a": h.sum()}, "returns dict, with no floating-point tensor"),
        (lambda h: None, "returns NoneType"),
        (lambda h: h.sum(), "the first axis must be the batch"),
        (lambda h: h.sum(0, keepdim=True).expand(5, -1), "the first axis must be the batch"),
        (lambda h: h.T, "first axis must be the batch"),
        (lambda h: h[:, :0], "returns shape"),
        (lambda h: h.argmax(1), "return real-valued outputs"),
        (lambda h: h / 0, "not finite"),
        (lambda h: h * torch.rand(1), "different outputs for the same inputs"),
        (lambda h: h - h.mean(0), "depends on the other inputs"),
        (lambda h: h @ h.T, "depends on the other inputs"),
        (lambda h: h.to(torch.complex64), "complex"),
        (lambda h: h.view(7, 7), "the model fails on shape"),
    ],
)
def test_models_that_cannot_be_analysed(function, told, seeded, watch, randn):
    net = watch(seeded(returning(function)))
    with pytest.raises(ModelError, match=told):
        FaultSpace(net, randn(2, 3), NeuronCrash(0.1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.1),
        nn.BatchNorm1d(4),
        nn.RReLU(),
        nn.InstanceNorm1d(4, track_running_stats=True),
    ],
)
def test_training_mode_of_a_layer_that_minds_is_refused(layer, watch, randn):
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    watch(net.train())
    with pytest.raises(ModelError, match=r"training mode.*'1'.*eval"):
        FaultSpace(net, randn(2, 3), NeuronCrash(0.1))


def test_training_mode_of_layers_that_do_not_mind_warns(make_net, watch, randn):
    net = watch(make_net((3, 4, 2)).train())
    with pytest.warns(CrashsimWarning, match="training mode"):
        FaultSpace(net, randn(2, 3), NeuronCrash(0.1))
    with pytest.warns(CrashsimWarning, match="training mode"):
        result = score(net, randn(2, 3), NeuronCrash(0.1), methods="exact")
    assert "training mode" in result.warnings[0]


def test_batch_norm_without_fixed_statistics_mixes_the_batch(seeded, randn):
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()
        )
    )
    with pytest.raises(ModelError, match=r"depends on the other inputs|fails on shape"):
        FaultSpace(net, randn(4, 3), NeuronCrash(0.1), "0")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
)
def test_types_of_numbers(dtype, tolerance, make_net, watch, randn):
    net = watch(make_net((3, 4, 2), "relu").to(dtype))
    x = randn(2, 3, dtype=torch.float64)
    space = FaultSpace(net, x, {"act1": NeuronCrash(0.2), "linear2.weight": WeightCrash(0.2)})
    assert space.dtype == dtype
    points = sample_block(space.placements, 0, 0).part(0, 20)
    outputs = space.outputs(points)
    assert outputs.dtype == np.float64
    wide = space.with_dtype(torch.float64)
    np.testing.assert_allclose(outputs, wide.outputs(points), atol=tolerance, rtol=tolerance)
    assert all(np.isfinite(rows).all() for _, rows in space.gradients(space.mean_point))
    assert net.linear1.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_score_in_low_precision(dtype, make_net, randn):
    net = make_net((3, 4, 2), "relu").to(dtype)
    result = score(net, randn(2, 3), NeuronCrash(0.2), samples=300)
    exact, absolute = (result.find(m, "mean", 0, 0) for m in ("exact", "absolute"))
    assert abs(exact.value) <= absolute.value * 1.02


def test_integer_inputs(seeded, watch):
    net = watch(
        seeded(
            lambda: nn.Sequential(
                nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
            )
        )
    )
    x = torch.tensor([[1, 2, 3], [0, 9, 9]])
    result = score(net, x, {"hidden": NeuronCrash(0.2), "0": NeuronCrash(0.01)}, samples=300)
    assert result.coordinates == 17
    assert result.find("mean-point-single", "variance").value > 0
    with pytest.raises(LookupError, match="'input' matches no"):
        FaultSpace(net, x, NeuronCrash(0.1), "input")


@pytest.mark.parametrize("call", [0, 1])
def test_inference_mode_changes_no_number(make_net, randn, call):
    net = make_net((3, 4, 2))
    how = {"samples": 200, "methods": ["taylor", "mean-point-taylor", "absolute", "monte-carlo"]}
    wanted = score(net, randn(2, 3), NeuronCrash(0.1), **how).to_dict()
    with torch.inference_mode():
        x = randn(2, 3)
        if call:
            found = score(net, x, NeuronCrash(0.1), **how)
    if not call:
        found = score(net, x, NeuronCrash(0.1), **how)
    assert found.to_dict()["estimates"] == wanted["estimates"]
    assert found.find("taylor", "variance").value > 0


def test_no_grad_changes_no_number(make_net, randn):
    net, x = make_net((3, 4, 2)), randn(2, 3)
    wanted = score(net, x, NeuronCrash(0.1), methods="taylor").to_dict()
    with torch.no_grad():
        found = score(net, x, NeuronCrash(0.1), methods="taylor")
    assert found.to_dict()["estimates"] == wanted["estimates"]


def test_frozen_and_shared_parameters(make_net, watch, randn):
    net = make_net((3, 4, 4, 4, 2))
    net.linear3.weight = net.linear2.weight
    watch(net.requires_grad_(False))
    space = FaultSpace(net, randn(2, 3), WeightCrash(1.0), "linear2.weight")
    found = space.outputs(Points.at(space.mean_point))[0]
    wanted = net.linear4(torch.tanh(net.linear3.bias)).double().numpy()
    np.testing.assert_allclose(found, np.tile(wanted, (2, 1)), atol=1e-6)


def test_outputs_of_any_shape_are_flattened(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1)))
    space = FaultSpace(net, randn(2, 1, 4, 4), NeuronCrash(0.1, group="channel"))
    assert (space.N, space.K) == (2, 12)
    flat = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)))
    assert FaultSpace(flat, randn(5, 3), NeuronCrash(0.1)).K == 1


def test_no_grad_inside_the_model_is_not_taken_for_no_effect(seeded, randn):
    class NoGrad(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        @torch.no_grad()
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    space = FaultSpace(seeded(NoGrad), randn(2, 3), NeuronCrash(0.1))
    with pytest.raises(NotApplicableError, match="without derivatives"):
        list(space.gradients(space.mean_point))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([[1.0, 2.0, 3.0]], "got list"),
        (None, "got NoneType"),
        ("digits", "got str"),
        (torch.tensor(1.0), "holds no examples"),
        (torch.zeros(0, 3), "holds no examples"),
        (torch.zeros(2, 0), "holds no examples"),
        (torch.full((2, 3), float("nan")), "NaN or infinity"),
        (torch.full((2, 3), float("inf")), "NaN or infinity"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex"),
        (np.array([["a", "b", "c"]]), "not numeric"),
        (np.array([[object()]]), "not numeric"),
    ],
)
def test_bad_inputs(inputs, told, make_net):
    with pytest.raises(ArgumentError, match="inputs: ") as raised:
        FaultSpace(make_net((3, 4, 2)), inputs, NeuronCrash(0.1))
    assert told in str(raised.value)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 5), torch.zeros(2, 3, dtype=torch.long)])
def test_inputs_that_do_not_fit(inputs, make_net):
    with pytest.raises(ModelError, match=r"inputs: the model fails on shape \(2, ") as raised:
        FaultSpace(make_net((3, 4, 2)), inputs, NeuronCrash(0.1))
    assert str(inputs.dtype) in str(raised.value)


@pytest.mark.parametrize("model", [None, "64-10:relu", lambda x: x, nn.Linear])
def test_bad_models(model, randn):
    with pytest.raises(ArgumentError, match="model: expected a torch"):
        FaultSpace(model, randn(2, 3), NeuronCrash(0.1))


def test_weights_that_are_not_finite(make_net, randn):
    net = make_net((3, 4, 2))
    with torch.no_grad():
        net.linear2.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'linear2.weight' holds NaN"):
        FaultSpace(net, randn(2, 3), NeuronCrash(0.1))


@pytest.mark.parametrize(
    "faults",
    ["neuron-crash", 0.1, {}, {"act1": 0.1}, {1: NeuronCrash(0.1)}, [NeuronCrash(0.1)], None],
)
def test_bad_faults(faults, make_net, randn):
    with pytest.raises(ArgumentError, match="faults"):
        FaultSpace(make_net((3, 4, 2)), randn(2, 3), faults)


@pytest.mark.parametrize("sites", [None, 3, ["act1"]])
def test_bad_site_names(sites, make_net, randn):
    with pytest.raises(ArgumentError, match="sites="):
        FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.1), sites)
