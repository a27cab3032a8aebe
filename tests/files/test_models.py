"""Models by name: what can be loaded, and what must never run."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crashsim import Score
from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.files.models import load_model, save_model


class Exploit:
    """Leaves a trace where its pickle is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


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
            ("my_nets.py:biuld", "did you mean 'build'"),
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


@pytest.fixture
def exported(tmp_path):
    """An archive of torch.export, its network, and the archive's members by name."""
    net = parse_architecture("4-3-2:relu").build(0)
    batch = torch.export.Dim("batch", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while exporting
        program = torch.export.export(net, (torch.ones(8, 4),), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        return tmp_path / "net.pt2", net, {name: archive.read(name) for name in archive.namelist()}


def evil_archives(members, trace):
    """Archives that leave a trace where they are loaded: by an expression in JSON, by a pickle."""

    def expressions(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "expr_str":
                node[key] = f"__import__('pathlib').Path({str(trace)!r}).mkdir()"
            elif isinstance(value, dict | list):
                expressions(value)
        return node

    for name, content in members.items():
        if name.endswith("models/model.json"):
            yield members | {name: json.dumps(expressions(json.loads(content))).encode()}
        elif name.endswith("sample_inputs/model.pt"):
            yield members | {name: pickle.dumps(Exploit(trace), protocol=0)}


def test_an_archive_is_code_and_runs_only_where_it_is_trusted(exported, tmp_path):
    good, net, members = exported
    trace, path = tmp_path / "ran", tmp_path / "evil.pt2"
    with pytest.raises(FileError, match=r"can run any code .* --trust \(trusted=True"):
        load_model(str(good))
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    torch.testing.assert_close(load_model(str(good), trusted=True).model(x), net(x))
    evil = list(evil_archives(members, trace))
    assert len(evil) == 2
    for content in evil:
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in content.items():
                archive.writestr(name, raw)
        with pytest.raises(FileError, match="trust"):
            load_model(str(path))
        assert not trace.exists()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(FileError):
                load_model(str(path), trusted=True)
        assert trace.exists()  # it would have run: the refusal is what keeps it from it
        trace.rmdir()
    with pytest.raises(ArgumentError, match="trusted='yes'"):
        load_model(str(good), trusted="yes")


@pytest.mark.parametrize("command", ["score", "compare", "hardware"])
def test_the_command_line_asks_for_the_users_word(exported, run, tmp_path, command):
    path, _, _ = exported
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 16).reshape(4, 4))
    fast = {"hardware": ("--masks", 5, "--steps", 5, "--engine", "numpy")}
    models = [path, "4-3-2:relu"] if command == "compare" else [path]
    call = (command, *models, "--inputs", "x.npy", *fast.get(command, ("--samples", 100)))
    code, out, err = run(*call)
    assert code == 2
    assert "--trust" in err
    assert "Traceback" not in out + err
    code, out, err = run(*call, "--trust")
    if command == "hardware":  # loaded, and then no layers that a chip could have
        assert "not torch's own" in err
    else:
        assert code == 0, err


def test_trust_changes_nothing_for_data(saved, tmp_path):
    _, path = saved
    load_model(str(path), trusted=True)
    torch.save({"linear1.weight": Exploit(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(FileError, match="not a plain state dict"):
        load_model("3-4-2:tanh", weights=str(tmp_path / "w.pt"), trusted=True)
    assert not (tmp_path / "ran").exists()


def test_archives_that_unpack_to_too_much_are_refused_with_the_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("CRASHSIM_FILE_LIMIT", "4MiB")
    for name in ("net.pt2", "w.pt"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(2**23))
    with pytest.raises(FileError, match=r"8\.0 MiB .* the 4\.0 MiB .* CRASHSIM_FILE_LIMIT=8MiB"):
        load_model(str(tmp_path / "net.pt2"), trusted=True)
    with pytest.raises(FileError, match=r"8\.0 MiB .* CRASHSIM_FILE_LIMIT"):
        load_model("3-4-2:tanh", weights=str(tmp_path / "w.pt"))
    for wrong in ("", "much", "4 apples", "-1", "1e3"):
        monkeypatch.setenv("CRASHSIM_FILE_LIMIT", wrong)
        with pytest.raises(ArgumentError, match=f"CRASHSIM_FILE_LIMIT={wrong!r}"):
            load_model("3-4-2:tanh", weights=str(tmp_path / "w.pt"))


WIDE = """
import resource
from crashsim.errors import FileError
from crashsim.files.models import load_model
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
try:
    load_model("wide")
except FileError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
@pytest.mark.parametrize(
    ("limit", "told"),
    [("2GiB", "6.0 GiB of memory, more than the 2.0 GiB that a file may"), ("9GiB", "not fit")],
)
def test_a_description_makes_no_network_but_that_of_its_weights(saved, tmp_path, limit, told):
    """A network of 1.5 GiB, in a process that has only one more."""
    _, path = saved
    described = {"format": 1, "architecture": "64-20000-20000-10:relu", "facts": {}}
    (tmp_path / "wide.json").write_text(json.dumps(described))
    weights = path.with_name("net.v1.safetensors").read_bytes()
    (tmp_path / "wide.safetensors").write_bytes(weights)
    done = subprocess.run(
        [sys.executable, "-c", WIDE], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"CRASHSIM_FILE_LIMIT": limit},
    )  # fmt: skip
    assert told in done.stdout


def test_deep_and_huge_architectures():
    with pytest.raises(ArgumentError, match="1,001 layers; give 1,000 at most"):
        parse_architecture("-".join(["1"] * 1002))
    assert len(parse_architecture("-".join(["1"] * 1001)).sizes) == 1001
    with pytest.raises(ArgumentError, match="more than the memory"):
        parse_architecture("3000000-3000000").build()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_files(tmp_path, kind, saved):
    """A pipe would wait for ever, and a device never end."""
    if kind == "folder":
        made = tmp_path / "made"
        made.mkdir()
    elif kind == "pipe":
        made = tmp_path / "made"
        os.mkfifo(made)
    else:
        made = "/dev/zero"
    for suffix in (".npy", ".npz", ".safetensors", ".pt", ".pt2", ".nir", ".json"):
        os.symlink(made, tmp_path / f"x{suffix}")
    x = str(tmp_path / "x")
    calls = [
        lambda: load_data(x + ".npy"),
        lambda: load_data(x + ".npz"),
        lambda: load_model("3-4-2:tanh", weights=x + ".safetensors"),
        lambda: load_model("3-4-2:tanh", weights=x + ".pt"),
        lambda: load_model(x + ".pt2", trusted=True),
        lambda: load_model(x + ".nir"),
        lambda: load_model(x),
        lambda: Score.load(x + ".json"),
    ]
    for call in calls:
        with pytest.raises(FileError, match=f"cannot be read: it is a {kind}"):
            call()


def test_the_face_of_the_folder():
    import crashsim.files
    from crashsim.files import load_data, load_model
    from crashsim.files.data import load_data as data
    from crashsim.files.models import load_model as model

    assert (load_data, load_model) == (data, model)
    assert set(crashsim.files.__all__) >= {"load_data", "load_model"}
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = crashsim.files.load


def test_names_that_do_not_fit_are_told(tmp_path):
    (tmp_path / "m.py").write_text("import torch\nnet = lambda: torch.nn.Linear(2, 3)\n")
    spec, path = f"{tmp_path}/m.py:net", str(tmp_path / "w.safetensors")
    save_file({"bias": torch.zeros(4), "scale": torch.zeros(1)}, path)
    told = r"1 \(weight\); Unexpected key\(s\): 1 \(scale\); Other shapes: 1 \(bias: \(4,\) in"
    with pytest.raises(FileError, match=told), torch.random.fork_rng(devices=[]):
        load_model(spec, weights=path)


def test_tied_weights_are_stored_once(tmp_path):
    code = (
        "import torch\n"
        "def net():\n"
        "    m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))\n"
        "    m[1].weight = m[0].weight\n"
        "    return m\n"
    )
    (tmp_path / "m.py").write_text(code)
    path = str(tmp_path / "w.safetensors")
    weight, bias = torch.ones(2, 2), torch.zeros(2)
    save_file({"0.weight": weight, "0.bias": bias, "1.bias": bias + 1}, path)
    with torch.random.fork_rng(devices=[]):
        model = load_model(f"{tmp_path}/m.py:net", weights=path).model
    assert torch.equal(model[1].weight, weight)
    assert torch.equal(model[1].bias, bias + 1)
