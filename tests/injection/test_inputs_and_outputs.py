"""Models that are called with several things and that return several things."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash, enumerate_exact, find_sites, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, ModelError, SiteError
from crashsim.scoring.score import Score


@pytest.fixture
def seeded():
    def build_seeded(build, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build().eval()

    return build_seeded


@pytest.fixture
def randn():
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, left, right, scale=1.0, *, difference=True):
        a, b = torch.tanh(self.body(left)), torch.tanh(self.body(right))
        return self.head(a - b if difference else a * b) * scale


class Tagger(nn.Module):
    """Tokens with a mask, as transformers take them; any extra argument is ignored."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **other):
        h = F.gelu(self.mix(self.embed(input_ids)))
        if attention_mask is not None:
            h = h * attention_mask[..., None]
            h = h.sum(1) / attention_mask.sum(1, keepdim=True)
        else:
            h = h.mean(1)
        return {"loss": None if labels is None else h.sum(), "logits": self.head(h), "state": h}


def plain_outputs(space, points):
    """Every sample in a plain pass of its own through the whole model."""
    return space.faulty_model.outputs(space.examples, points)


def compare_with_plain(space, count=30, atol=1e-5):
    """Fast samples against plain passes; returns the outputs."""
    points = sample_points(space.placements, 0, count)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-3
    np.testing.assert_allclose(found, plain_outputs(space, points), atol=atol)
    return found


def test_positional_arguments(seeded, randn):
    net, pair = seeded(Siamese), (randn(5, 3), randn(5, 3) * 2)
    space = FaultSpace(net, pair, {"input": NeuronCrash(0.2), "hidden": NeuronCrash(0.1)})
    assert [p.site.name for p in space.placements] == ["input.0", "input.1", ":tanh"]
    assert (space.N, space.B, space.K) == (3 + 3 + 4, 5, 2)
    with torch.no_grad():
        np.testing.assert_allclose(space.clean(), net(*pair).double(), atol=1e-6)
        gone = FaultSpace(net, pair, {"input.1": NeuronCrash(1.0)})
        dead = gone.outputs(Points.at(gone.mean_point))[0]
        np.testing.assert_allclose(dead, net(pair[0], torch.zeros(5, 3)).double(), atol=1e-6)
    compare_with_plain(space)
    assert "whole model" not in " ".join(space.plan())


@pytest.mark.parametrize("faults", [NeuronCrash(0.2), WeightCrash(0.03)], ids=str)
def test_keyword_arguments_and_what_is_no_tensor(faults, seeded, randn):
    net = seeded(Siamese)
    given = {"left": randn(4, 3), "right": randn(4, 3).numpy() ** 2, "scale": 3, "difference": True}
    space = FaultSpace(net, given, faults)
    assert [s.name for s in space.available_sites][:2] == ["input.left", "input.right"]
    with torch.no_grad():
        wanted = net(given["left"], torch.from_numpy(given["right"]), 3).double()
    np.testing.assert_allclose(space.clean(), wanted, atol=1e-6)
    compare_with_plain(space)
    assert "whole model" not in " ".join(space.plan())


def test_gradients_batches_and_precision_with_several_inputs(seeded, randn, monkeypatch):
    net, pair = seeded(Siamese), (randn(5, 3), randn(5, 3) * 2)
    space = FaultSpace(net, pair, {"*": NeuronCrash(0.1), "body.weight": WeightCrash(0.1)})
    space = space.with_dtype(torch.float64)
    at = space.mean_point
    gradient = np.concatenate([rows for _, rows in space.gradients(at)])
    for i in range(0, space.N, 5):
        step = 1e-6 * np.eye(space.N)[i]
        up, down = (space.outputs(Points.at(at + s))[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[:, :, i], (up - down) / 2e-6, atol=1e-7)
    points = sample_points(space.placements, 0, 20)
    whole = space.outputs(points)
    np.testing.assert_allclose(space.at_input(3).outputs(points)[:, 0], whole[:, 3], atol=1e-12)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 1)
    np.testing.assert_allclose(space.outputs(points), whole, atol=1e-12)


def test_tokens_and_a_mask(seeded):
    net = seeded(Tagger)
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    given = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]), "use": "x"}
    space = FaultSpace(net, given, NeuronCrash(0.2))
    assert space.readout.name == "logits"
    assert [p.site.name for p in space.placements] == [":gelu"]
    assert "input" not in [s.kind for s in space.available_sites]
    compare_with_plain(space)
    with pytest.raises(SiteError, match="'input' matches no"):
        FaultSpace(net, given, NeuronCrash(0.2), "input")
    with torch.no_grad():
        np.testing.assert_allclose(space.clean(), net(**given)["logits"].double(), atol=1e-6)
        other = FaultSpace(net, given, NeuronCrash(0.2), readout="state")
        np.testing.assert_allclose(other.clean(), net(**given)["state"].double(), atol=1e-6)


def test_a_score_of_several_inputs(seeded, randn, tmp_path):
    net = seeded(Siamese)
    given = {"left": randn(3, 3), "right": randn(3, 3) + 1}
    result = score(
        net, given, NeuronCrash(0.1), epsilon=0.1, samples=4000, methods=["+pairs", "+certificate",
        "+mean-point-curvature", "+importance-sampling"],
    )  # fmt: skip
    exact, sampled = (result.find(m, "variance") for m in ("exact", "monte-carlo"))
    assert sampled.low < exact.value < sampled.high
    assert result.find("taylor", "variance").value > 0
    assert result.find("importance-sampling", "tail", output=0) or result.find(
        "importance-sampling", "tail", output=1
    )
    for method in ("norm", "absolute", "certificate"):
        assert result.skipped[method] == (
            "for models that are called with one tensor; this one is called with left, right"
        )
    assert result.inputs == {"source": None, "count": 3, "shape": {"left": [3], "right": [3]}}
    result.save(tmp_path / "score.json")
    assert Score.load(tmp_path / "score.json").inputs == result.inputs
    assert "3 of shape left (3), right (3)" in " ".join(result.to_html().split())
    assert "average over 3 inputs" in result.to_text().lower()
    whole = enumerate_exact(net, given, NeuronCrash(0.1))
    np.testing.assert_allclose(whole.variance.sum(1).mean(), exact.value, rtol=1e-9)


def test_the_hardware_is_for_one_input(seeded, randn):
    given = {"left": randn(2, 3), "right": randn(2, 3) + 1}
    result = score(seeded(Siamese), given, hardware=True)
    assert "called with left, right" in result.skipped["hardware"]
    assert result.find("monte-carlo", "variance").value > 0  # nothing else is lost by it


def test_nested_arguments(seeded, randn):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 2)

        def forward(self, x, state, *rest, **named):
            h = self.cell(x, (state["h"], state["c"]))[0]
            more = named["more"][1] if named else 1
            return self.head(torch.relu(h + rest[0] + more))

    net, h = seeded(Decoder), randn(4, 4)
    given = {"x": randn(4, 3), "state": {"h": h, "c": 2 * h}, "more": [None, h]}

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, state, more):
            return self.inner(x, state, x.sum(1, keepdim=True), more=more)

    space = FaultSpace(Named().eval(), given, {"input.state.*": NeuronCrash(0.3)})
    assert [p.site.name for p in space.placements] == ["input.state.h", "input.state.c"]
    compare_with_plain(space)
    direct = FaultSpace(net, (given["x"], given["state"], h), NeuronCrash(0.3), "input.1.*")
    assert [p.site.name for p in direct.placements] == ["input.1.h", "input.1.c"]


Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()


class Mapping(OrderedDict):
    """As transformers' ModelOutput: an ordered dict whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Holder:
    def __init__(self, value):
        self.value = value


def returning(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return function(h, self.b(h))

    return Model


@pytest.mark.parametrize(
    ("function", "readout", "name"),
    [
        (lambda h, y: y, None, ""),
        (lambda h, y: {"y": y}, None, "y"),
        (lambda h, y: (y,), None, "0"),
        (lambda h, y: [y, None, y.argmax(1), "text"], None, "0"),
        (lambda h, y: {"loss": y.sum(), "y": y, "ids": y.argmax(1)}, None, "y"),
        (lambda h, y: Output(y, (h, h)), None, "logits"),
        (lambda h, y: Mapping(hidden=h, logits=y), None, "logits"),
        (lambda h, y: Pair(h, y), "second", "second"),
        (lambda h, y: Pair(h, y), 1, "1"),
        (lambda h, y: (h, y), -1, "-1"),
        (lambda h, y: (h, {"deep": [h, y]}), "1.deep.1", "1.deep.1"),
        (lambda h, y: (h, {"deep": y}), 1, "1.deep"),
        (lambda h, y: Output(h, (y,)), "hidden_states.0", "hidden_states.0"),
        (lambda h, y: Holder(y), "value", "value"),
    ],
)
def test_structured_outputs(function, readout, name, seeded, randn):
    net, x = seeded(returning(function)), randn(3, 3)
    space = FaultSpace(net, x, {"hidden": NeuronCrash(0.3)}, readout=readout)
    assert space.readout.name == name
    plain = FaultSpace(seeded(returning(lambda h, y: y)), x, NeuronCrash(0.3))
    np.testing.assert_array_equal(space.clean(), plain.clean())
    found = compare_with_plain(space)
    points = sample_points(space.placements, 0, 30)
    np.testing.assert_allclose(found, plain.outputs(points), atol=1e-6)
    assert "whole model" not in " ".join(space.plan())
    assert next(s for s in space.available_sites if s.name == "b").is_output


@pytest.mark.parametrize(
    ("function", "readout", "error", "told"),
    [
        (lambda h, y: (h, y), None, ModelError, r"0: \(2, 4\), 1: \(2, 2\)\).*readout='0'"),
        (lambda h, y: {"a": h, "b": (y, y)}, None, ModelError, r"b\.1: .*readout='a'"),
        (lambda h, y: {"a": h, "b": (y, y)}, "b", ModelError, r"readout='b\.0'"),
        (
            lambda h, y: {"a": h, "b": y},
            "c",
            ArgumentError,
            r"readout='c' is not a part .*dict \(a:",
        ),
        (lambda h, y: {"a": h, "b": y}, True, ArgumentError, "readout=True is not a part"),
        (lambda h, y: (h, y), 2, ArgumentError, "readout=2 is not a part"),
        (lambda h, y: y, "logits", ArgumentError, "readout='logits': the model returns one tensor"),
        (lambda h, y: Holder(y), None, ModelError, "returns Holder, with no floating-point tensor"),
        (lambda h, y: {"y": y.sum(), "z": y.T}, None, ModelError, "no floating-point tensor"),
        (lambda h, y: {"y": y, "z": y.argmax(1)}, "z", ModelError, "return real-valued outputs"),
        (lambda h, y: {"y": y.sum()}, "y", ModelError, "the first axis must be the batch"),
    ],
)
def test_outputs_that_must_be_chosen(function, readout, error, told, seeded, randn):
    with pytest.raises(error, match=told):
        FaultSpace(seeded(returning(function)), randn(2, 3), NeuronCrash(0.1), readout=readout)


def test_the_choice_does_not_depend_on_the_number_of_examples(seeded, randn):
    """A tensor whose first axis happens to be as long as the batch is not taken for one."""
    net = seeded(returning(lambda h, y: {"y": y, "weights": torch.ones(4, 4)}))
    for count in (1, 2, 3, 4):
        assert FaultSpace(net, randn(count, 3), NeuronCrash(0.1)).readout.name == "y"


def test_a_score_names_what_it_analysed(seeded, randn):
    net = seeded(returning(lambda h, y: {"hidden": h, "logits": y}))
    result = score(net, randn(2, 3), NeuronCrash(0.1), samples=200)
    assert result.model["readout"] == "logits"
    assert (
        result.skipped["norm"] == "for models that return one tensor; of this one, 'logits' is read"
    )
    assert "<dt>output</dt><dd>logits</dd>" in result.to_html()
    named = score(net, randn(2, 3), NeuronCrash(0.1), readout="hidden", methods="exact", sites="a")
    assert named.model["readout"] == "hidden"
    assert named.outputs == 4
    assert "readout" not in score(net.b, randn(2, 4), methods="exact", sites="input").model


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ((), "got tuple without any"),
        ({}, "got dict without any"),
        ((1, None), "got tuple without any"),
        ([[1.0, 2.0]], "got list without any"),
        ({1: torch.ones(2, 3)}, "key 1 is not the name"),
        ((torch.ones(2, 3), torch.ones(3, 3)), r"inputs\[1\]: shape \(3, 3\) holds 3 examples, but "
         r"inputs\[0\] holds 2; .*expand\(2, ...\)"),
        ({"left": torch.ones(2, 3), "right": torch.ones(())}, r"inputs\['right'\]: shape \(\)"),
        ({"left": torch.ones(2, 3), "right": torch.ones(2, 0)}, r"'right'\]: .*no examples"),
        ({"left": torch.ones(2, 3), "right": torch.full((2, 3), torch.nan)}, "'right'.: hold NaN"),
        ({"left": torch.ones(2, 3), "right": np.full((2, 3), np.inf)}, r"'right'\]: hold NaN"),
        ({"left": torch.ones(2, 3), "right": np.ones((2, 3), complex)}, r"'right'\]: complex"),
        ({"left": torch.ones(2, 3), "right": np.array([["a"] * 3] * 2)}, "'right'.*not numeric"),
        (({"a": [torch.ones(2), torch.ones(3)]},), r"inputs\[0\]\['a'\]\[1\]: shape \(3,\)"),
        (torch.ones(2, 3).to_sparse(), "use to_dense"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_inputs(inputs, told, seeded):
    with pytest.raises(ArgumentError, match=told):
        FaultSpace(seeded(Siamese), inputs, NeuronCrash(0.1))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (torch.ones(2, 3), "missing 1 required positional argument: 'right'"),
        ({"left": torch.ones(2, 3), "up": torch.ones(2, 3)}, "unexpected keyword argument 'up'"),
        ((torch.ones(2, 3), torch.ones(2, 5)), r"fails on shapes 0: \(2, 3\) of torch.float32, 1"),
    ],
)
def test_inputs_that_the_model_does_not_take(inputs, told, seeded):
    with pytest.raises(ModelError, match=told):
        FaultSpace(seeded(Siamese), inputs, NeuronCrash(0.1))


class Widens(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.second(self.first(x).double())


def test_models_that_compute_in_several_types(seeded):
    with pytest.raises(ModelError, match=r"torch\.float32 and torch\.float64: convert it to one"):
        FaultSpace(seeded(Widens), torch.ones(2, 3), NeuronCrash(0.1))


def test_arrays_of_any_kind(seeded):
    net = seeded(Siamese)
    right = np.arange(6.0).reshape(2, 3)
    wanted = FaultSpace(net, (right, right + 1), NeuronCrash(0.1)).clean()
    frozen = right + 1
    frozen.setflags(write=False)
    for kind in (">f4", np.float16, np.longdouble):
        found = FaultSpace(net, (right.astype(kind), frozen), NeuronCrash(0.1)).clean()
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    flipped = FaultSpace(net, (right[:, ::-1][:, ::-1], frozen[::1]), NeuronCrash(0.1)).clean()
    np.testing.assert_allclose(flipped, wanted, atol=1e-6)


def test_find_sites_takes_several_inputs(seeded, randn):
    sites = find_sites(seeded(Siamese), (randn(2, 3), randn(2, 3)))
    assert [s.name for s in sites][:2] == ["input.0", "input.1"]
