"""Printing: it never fails, never loses a result, and shows names as the text that they are."""

import io
import json
import os
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import torch

from crashsim import CrashsimError, CrashsimWarning, NeuronCrash, Score, score
from crashsim.cli import main
from crashsim.results.json_reading import finite
from crashsim.visible import visible

PROGRAM = [sys.executable, "-c", "from crashsim.cli import main; main()"]
SCORE = ("score", "4-5-2:tanh", "--inputs", "d.npz", "--p", "0.1", "--epsilon", "0.1",
         "--samples", "300", "--methods", "exact,norm,taylor,saddlepoint,monte-carlo",
         "--json", "s.json", "--report", "r.html", "--details")  # fmt: skip


@pytest.fixture
def printing(tmp_path, monkeypatch):
    """``printing(stream, *arguments)``: the exit code, where that stream is standard output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.normal(size=(8, 4)), y=np.arange(8) % 2)
    threads = torch.get_num_threads()

    def call(stream, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["crashsim", *arguments])
            patch.setattr(sys, "stdout", stream)
            try:
                main()
            except SystemExit as stop:
                return stop.code or 0
            assert sys.stdout is stream
        return 0

    yield call
    torch.set_num_threads(threads)


def assert_written():
    assert Score.load("s.json").samples == 300
    with open("r.html", encoding="utf-8") as file:
        assert file.read().rstrip().endswith("</html>")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_encoding(printing, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert printing(stream, *SCORE) == 0
    assert_written()
    text = stream.buffer.getvalue().decode(encoding)
    if encoding == "utf-8":
        assert "Var Δ, all outputs" in text
        assert "≤ bound" in text
        return
    assert "Var D, all outputs" in text
    assert "P(|D| >= 0.1)" in text
    assert "<= bound, under an" in text
    assert ("±" if encoding != "ascii" else "+-") + " measured" in " ".join(text.split())
    assert "?" not in text
    derived = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert printing(derived, "derive", "--fault", "neuron-crash") == 0
    assert "Var Delta" in derived.buffer.getvalue().decode(encoding)


def test_a_reader_that_left(printing, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        assert printing(stream, *SCORE) == 0
        assert_written()
        assert printing(stream, "train", "4-3-2", "--data", "d.npz", "--epochs", "1") == 0
        assert os.path.exists("model.safetensors")
    assert "error" not in capfd.readouterr().err


def test_standard_output_that_is_full(printing, capfd):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        assert printing(stream, *SCORE) == 1
    assert_written()
    assert "error: standard output: No space left on device" in capfd.readouterr().err


def test_no_standard_output(printing):
    assert printing(None, *SCORE) == 0
    assert_written()


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true"])
def test_streams_that_are_closed_from_the_start(tmp_path, make_net, randn, closing):
    """In a shell, with what Python does when it ends: nothing is told twice, no file is torn."""
    line = f"set -o pipefail; {PROGRAM[0]} -c '{PROGRAM[2]}' report s.json {closing}; echo $? >code"
    score(make_net((3, 4, 2)), randn(2, 3), methods=["taylor"]).save(tmp_path / "s.json")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "Error" not in done.stderr
    assert "Exception" not in done.stderr


def test_help_without_a_reader(printing):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        assert printing(stream, "score", "--help") == 0


def test_narrow_and_dumb_terminals_without_a_home(printing, monkeypatch):
    for name in ("HOME", "TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for columns, term in (("20", "dumb"), ("1", ""), ("nonsense", "xterm-256color")):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", term)
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        assert printing(stream, *SCORE) == 0
        assert b"\x1b" not in stream.buffer.getvalue()
        assert_written()


# Names.

HOSTILE = (
    "[/bold]", "[red]x", "[link=file:///etc]", ":smile:", "$x^$", "<script>", "\x1b[2J", "a\nb",
    "\x9b31m", "\r", "\u202egpj.exe", "\u2028", "\udcff", "\ufeff", "{{ 7 * 7 }}", "%s", "_x",
)  # fmt: skip


def assert_only_visible(text):
    unseen = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen <= {"\n"}, unseen


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_text(make_net, randn, name):
    net = make_net((3, 4, 2))
    record = score(net, randn(2, 3), NeuronCrash(0.1), samples=100, epsilon=0.1).to_dict()
    record["model"]["name"] = name
    record["inputs"]["source"] = name
    for site in record["sites"]:
        site["name"] = name
    for top in record["top"]:
        top["site"] = name
    record["warnings"] = [f"warned of {name}"]
    record["skipped"] = {name: f"because of {name}"}
    record["plan"] = [name]
    record["curves"]["methods"][name] = record["curves"]["methods"]["chernoff"]
    found = Score.from_dict(json.loads(json.dumps(finite(record))))
    text, html = found.to_text(300), found.to_html()
    for shown in (text, html):
        assert_only_visible(shown)
    assert f"crashsim: {visible(name)}" in text
    assert f"because of {visible(name)}" in text
    assert "<script>" not in html
    assert "49" not in html.partition("<title>")[2].partition("</title>")[0]
    html.encode()


def test_a_module_with_a_markup_name(printing):
    with open("m.py", "w") as file:
        file.write(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a, self.c = nn.Linear(4, 5), nn.Linear(5, 2)\n"
            "        self.add_module('[/bold]', nn.ReLU())\n"
            "        self.add_module('\\x1b[2J', nn.Tanh())\n"
            "    def forward(self, x):\n"
            "        x = self._modules['[/bold]'](self.a(x))\n"
            "        return self.c(self._modules['\\x1b[2J'](x))\n"
            "def make(): return Net().eval()\n"
        )
    for command in (
        ("score", "m.py:make", *SCORE[2:]),
        ("compare", "m.py:make", "4-5-2:tanh", *SCORE[2:6], "--json", "c.json"),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with torch.random.fork_rng(devices=[]):
            assert printing(stream, *command) == 0
        text = stream.buffer.getvalue().decode()
        assert_only_visible(text)
    assert_written()
    names = {site["name"] for site in Score.load("s.json").sites}
    assert names == {"[/bold]", "\x1b[2J"}  # as they are, in what programs read


@pytest.mark.parametrize(
    "name", ["[bold].npz", "\x1b[2J.npz", "\u202e.npz", os.fsdecode(b"\xff.npz")]
)
def test_file_names_in_messages(printing, capsys, name):
    os.rename("d.npz", name)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    options = (*SCORE[:3], name, *SCORE[4:])
    assert printing(stream, *options, "--json", f"{name}.json") == 0
    assert printing(stream, *options, "--json", name) == 2
    assert printing(stream, *options[:3], f"x{name}", *options[4:]) == 2
    told = capsys.readouterr().err
    assert visible(name) in told
    assert_only_visible(told)
    assert_only_visible(stream.buffer.getvalue().decode())


def test_errors_and_warnings_hold_no_escapes():
    assert str(CrashsimError("a\x1b[2Jb\nc")) == "a\\x1b[2Jb\nc"
    assert str(CrashsimWarning("\u202e")) == "\\u202e"
    with pytest.warns(CrashsimWarning, match=r"^\\x07$"):
        warnings.warn("\x07", CrashsimWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe_1.ß 漢 Δ é", "Größe_1.ß 漢 Δ é"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b\x7f\x85", "\\x1b\\x7f\\x85"),
        ("\u2066\ud800\U000e0041", "\\u2066\\ud800\\U000e0041"),
        ("\\x1b", "\\x1b"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown
    assert visible(text, lines=True) == shown.replace("\\n", "\n" if "\n" in text else "\\n")
