"""Models by name: what can be loaded, and what must never run."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from crashsim.architectures import parse_architecture
from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.files import load_model, save_model


class Exploit:
    """Leaves a trace where its pickle is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def saved(tmp_path):
    architecture = parse_architecture("3-4-2:tanh")
    net = architecture.build(5)
    save_model(tmp_path / "deep" / "net.v1", net, architecture, {"accuracy": 0.5})
    return net, tmp_path / "deep" / "net.v1"


@pytest.mark.parametrize("suffix", ["", ".json", ".safetensors"])
def test_round_trip(saved, suffix):
    net, path = saved
    named = load_model(str(path) + suffix)
    assert str(named.architecture) == "3-4-2:tanh"
    assert named.facts == {"accuracy": 0.5}
    assert named.trained
    for key, value in net.state_dict().items():
        assert torch.equal(named.model.state_dict()[key], value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "{}", '{"format": 2, "architecture": "3-2"}',
     '{"format": 1}', '{"format": 1, "architecture": 7}',
     '{"format": 1, "architecture": "64"}', "\udcff"],
)  # fmt: skip
def test_damaged_descriptions(saved, text):
    _, path = saved
    path.with_name("net.v1.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CrashsimError, match=r"net\.v1|architecture"):
        load_model(str(path))


def test_damaged_or_missing_weights(saved):
    _, path = saved
    weights = path.with_name("net.v1.safetensors")
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(FileError, match="not a plain state dict"):
        load_model(str(path))
    weights.write_bytes(b"nonsense")
    with pytest.raises(FileError, match=r"safetensors"):
        load_model(str(path))
    weights.unlink()
    with pytest.raises(FileError, match="does not exist"):
        load_model(str(path))


def test_weights_of_another_network(saved, tmp_path):
    save_file({"linear1.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(FileError, match="does not fit the network"):
        load_model("3-4-2:tanh", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("saver", ["torch", "pickle"])
def test_pickled_code_is_refused_without_running_it(tmp_path, suffix, saver):
    trace, path = tmp_path / "trace", tmp_path / f"w{suffix}"
    content = {"linear1.weight": Exploit(trace)}
    if saver == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(FileError, match="weights"):
        load_model("3-4-2:tanh", weights=str(path))
    with pytest.raises(ArgumentError, match="pickled code"):
        load_model(str(path))
    assert not trace.exists()


def test_a_plain_state_dict(tmp_path):
    net = parse_architecture("3-4-2:tanh").build(7)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    named = load_model("3-4-2:tanh", weights=str(tmp_path / "w.pt"))
    assert torch.equal(named.model[0].weight, net[0].weight)
    assert named.trained


def test_factories(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "net = torch.nn.Linear(3, 2)\n"
        "def build(): return torch.nn.Linear(3, 2)\n"
        "def number(): return 5\n"
        "constant = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        for spec in ("my_nets.py:build", f"{tmp_path}/my_nets.py:net", "my_nets:build"):
            assert isinstance(load_model(spec).model, torch.nn.Linear)
        for spec, told in (
            ("my_nets.py:nothing", "no 'nothing'"),
            ("my_nets.py:number", "returned int"),
            ("my_nets.py:constant", "not a factory"),
            ("none.py:build", "does not exist"),
            ("no_such_module_here:build", "cannot import"),
        ):
            with pytest.raises(CrashsimError, match=told):
                load_model(spec)


@pytest.mark.parametrize("spec", ["", "nothing", "nothing.pt2", "64", "a/b/c", "dir/"])
def test_names_that_stand_for_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="model="):
        load_model(spec)


def test_exported_archives(tmp_path, randn):
    net = parse_architecture("3-4-2:tanh").build(1)
    program = torch.export.export(
        net, (randn(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    model = load_model(str(tmp_path / "net.pt2"), trusted=True).model
    assert torch.allclose(model(randn(5, 3)), net(randn(5, 3)))


def test_save_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    architecture = parse_architecture("3-2")
    with pytest.raises(FileError, match="cannot write"):
        save_model(tmp_path / "file" / "net", architecture.build(), architecture, {})


def test_the_description_is_json(saved):
    _, path = saved
    described = json.loads(path.with_name("net.v1.json").read_text())
    assert described == {"format": 1, "architecture": "3-4-2:tanh", "facts": {"accuracy": 0.5}}


