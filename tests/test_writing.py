"""Files: outputs against inputs and each other; whole or absent, whatever ends the writing."""

import errno
import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from crashsim import NeuronCrash, Score, TrainingReport, score
from crashsim.errors import ArgumentError, FileError
from crashsim.files.architectures import parse_architecture
from crashsim.files.models import load_model, save_model
from crashsim.writing import check_files, write_files, write_picture, write_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in.npz", "old.json", "deep/in.npz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"kept {name}")
    return tmp_path


def everything(folder):
    """Each file and link below a folder, with what it holds and may do."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
            path.lstat().st_mode,
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


# What must not be overwritten.


@pytest.mark.parametrize(
    "output",
    [
        "in.npz",
        "./in.npz",
        "deep/../in.npz",
        "{here}/in.npz",
        "link",
        "links",
        "hard",
        "folder/in.npz",
    ],
)
def test_an_output_that_is_an_input(folder, output):
    (folder / "link").symlink_to("in.npz")
    (folder / "links").symlink_to("link")
    (folder / "hard").hardlink_to(folder / "in.npz")
    (folder / "folder").symlink_to(folder, target_is_directory=True)
    before = everything(folder)
    with pytest.raises(ArgumentError, match=r"json=.*would overwrite the input data='in\.npz'"):
        check_files([("json", output.format(here=folder))], [("data", "in.npz")])
    assert everything(folder) == before


def test_an_input_that_is_a_link_to_the_output(folder):
    (folder / "link").symlink_to("in.npz")
    with pytest.raises(ArgumentError, match="would overwrite"):
        check_files([("json", "in.npz")], [("data", "link")])


def test_other_files_of_the_same_name_are_no_inputs(folder):
    check_files([("json", "deep/in.json"), ("report", "in.npz.html")], [("data", "in.npz")])
    check_files([("json", "digits")], [("data", "digits")])  # which is no file
    check_files([("json", "deep/in.npz")], [("data", "in.npz")])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("new", "./new"),
        ("new/a", "deep/../new/a"),
        ("old.json", "link"),
        ("dangling", "new"),
        ("New.json", "new.json"),  # one file on some file systems
        ("fu\u0308r", "f\u00fcr"),
    ],
)
def test_two_outputs_that_are_one_file(folder, one, other):
    (folder / "link").symlink_to("old.json")
    (folder / "dangling").symlink_to("new")
    before = everything(folder)
    with pytest.raises(ArgumentError, match="same file"):
        check_files([("json", one), ("report", other)])
    assert everything(folder) == before


def test_an_output_that_another_needs_as_a_folder(folder):
    for files in (("new", "new/r.html"), ("new/r.html", "new")):
        with pytest.raises(ArgumentError, match="folder of"):
            check_files(list(zip(("json", "report"), files, strict=True)))


def test_devices_take_several_outputs(folder):
    check_files([("json", "/dev/null"), ("report", "/dev/null")], [("data", "/dev/null")])


# Whole or absent.


@pytest.mark.parametrize("name", ["new", "old.json", "not/yet/there"])
def test_written_whole(folder, name):
    write_text("json", name, "Δ\udc80\n")
    assert (folder / name).read_bytes() == b"\xce\x94\\udc80\n"
    assert set(os.listdir(folder)) - {name.split("/")[0]} <= {"in.npz", "old.json", "deep"}


def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(folder, umask):
    (folder / "old.json").chmod(0o604)
    for name, mode in (("new", 0o640), ("old.json", 0o604)):
        write_text("json", name, "x")
        assert stat.S_IMODE((folder / name).stat().st_mode) == mode


def test_a_model_is_as_readable_as_its_description(folder, umask):
    architecture = parse_architecture("3-4-2")
    files = save_model("m", architecture.build(), architecture, {})
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o640, 0o640]


def test_a_link_stays_one(folder):
    (folder / "link").symlink_to("deep/link")
    (folder / "deep/link").symlink_to("../old.json")
    (folder / "dangling").symlink_to("deep/new")
    write_text("json", "link", "new")
    write_text("json", "dangling", "new")
    assert (folder / "old.json").read_text() == (folder / "deep/new").read_text() == "new"
    assert all((folder / name).is_symlink() for name in ("link", "deep/link", "dangling"))
    (folder / "loop").symlink_to("loop")
    with pytest.raises(FileError, match="symbolic links"):
        write_text("json", "loop", "x")


def test_a_file_that_may_not_be_written_is_kept(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(folder / "old.json"))
    for attempt in (check_files, lambda files: write_text(*files[0], "x")):
        with pytest.raises(FileError, match="permission denied"):
            attempt([("json", "old.json")])
    assert (folder / "old.json").read_text() == "kept old.json"


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), MemoryError()], ids=repr)
def test_what_fails_leaves_the_old_file(folder, monkeypatch, function, error):
    before = everything(folder)

    def fails(*_):
        raise error

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(FileError if error is FULL else type(error)):
        write_text("json", "old.json", "x" * 10**6)
    assert everything(folder) == before


def test_a_full_disk(folder):
    """A limit of the size of files stands for it: in a program of its own."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from crashsim.writing import write_text\n"
        "write_text('json', 'small', 'x'); write_text('json', 'old.json', 'x' * 20001)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "FileError: json='old.json': cannot write there (file too large)" in done.stderr
    (folder / "small").unlink()
    assert everything(folder).keys() == {"in.npz", "old.json", "deep/in.npz"}
    assert (folder / "old.json").read_text() == "kept old.json"


def test_an_interrupt_does_not_part_files_that_belong_together(folder, monkeypatch):
    replace, files = os.replace, [folder / "one", folder / "two"]

    def interrupted(*paths):
        replace(*paths)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files("out", *((file, b"new") for file in files))
    assert [file.read_bytes() for file in files] == [b"new", b"new"]


def test_one_that_cannot_be_written_keeps_the_other_back(folder):
    with pytest.raises(FileError, match="it is a folder"):
        write_files("out", ("one", b"new"), ("deep", b"new"))
    assert not (folder / "one").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_old_or_new(folder, interrupting):
    architecture = parse_architecture("3-4-2")
    nets = [architecture.build(seed) for seed in (0, 1)]
    old = [(path, path.read_bytes()) for path in save_model("m", nets[0], architecture, {"run": 0})]
    seen = []

    for stop in interrupting("writing"):
        with suppress(KeyboardInterrupt), stop:
            save_model("m", nets[1], architecture, {"run": 1})
        assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]
        try:
            loaded = load_model("m")
        except FileError as error:
            seen.append(str(error).partition(" does not go with ")[1])
        else:
            run = loaded.facts["run"]
            seen.append(run)
            assert torch.equal(loaded.model[0].weight, nets[run][0].weight)
        for path, content in old:
            path.write_bytes(content)
    assert set(seen) - {" does not go with "} == {0, 1}


# Models are two files.


def test_files_of_two_models_are_no_model(folder):
    architecture = parse_architecture("3-4-2")
    for name, seed in (("a", 0), ("b", 1)):
        save_model(name, architecture.build(seed), architecture, {"seed": seed})
    (folder / "a.safetensors").replace(folder / "b.safetensors")
    with pytest.raises(FileError, match="does not go with the description beside it"):
        load_model("b")
    # Laid out otherwise, it is the same description; and weights of others go with any.
    save_model("a", architecture.build(), architecture, {"seed": 0})
    described = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps(described, sort_keys=True))
    assert load_model("a").facts == {"seed": 0}
    from safetensors.torch import save_file

    save_file(architecture.build(5).state_dict(), "a.safetensors")
    assert torch.equal(load_model("a").model[0].weight, architecture.build(5)[0].weight)


# What else writes.


def test_what_is_no_regular_file_is_written_as_it_is(folder):
    write_text("json", "/dev/null", "x")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text("json", "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    with pytest.raises(FileError, match="no space left"):
        write_text("json", "/dev/full", "x")


def test_open_files_are_written_where_they_are(folder):
    with open("log", "wb+", buffering=0) as log:
        log.write(b"first ")
        write_text("json", f"/dev/fd/{log.fileno()}", "then")
        log.write(b" last")
    assert Path("log").read_bytes() == b"first then last"


def test_pictures_and_scores(folder, make_net, randn):
    figure = Figure()
    write_picture("path", "plain", figure)
    assert Path("plain.png").read_bytes().startswith(b"\x89PNG")
    write_picture("path", "drawn.SVG", figure)
    assert "<svg" in Path("drawn.SVG").read_text()
    with pytest.raises(ArgumentError, match=r"path='a\.txt': no kind of picture"):
        write_picture("path", "a.txt", figure)
    net, x = make_net((3, 4, 2)), randn(2, 3)
    report = TrainingReport(net, x, NeuronCrash(0.1), samples=100)
    report.look(0)
    report.plot("looks.pdf")
    assert Path("looks.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(FileError, match="cannot write"):
        report.plot("old.json/looks.png")
    found = score(net, x, NeuronCrash(0.1), methods=["taylor"])
    found.save("s.json")
    assert np.isclose(
        Score.load("s.json").find("taylor", "variance").value,
        found.find("taylor", "variance").value,
    )
