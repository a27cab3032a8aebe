"""Every example runs, and says what it is there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = {
    "score_a_model.py": ([], "outputs together move"),
    "compare_architectures.py": (
        ["--inits", "2", "--epochs", "2", "--samples", "200"],
        "fewest changes of class",
    ),
    "accuracy_under_faults.py": (["--epochs", "2", "--chips", "60"], "of chips reach 90%"),
    "accuracy_curve.py": (["--epochs", "2", "--chips", "40"], "90% are right up to p"),
    "protect_a_cnn.py": (["--epochs", "1", "--chips", "20"], "of the bits, chosen one by one"),
    "loss_under_faults.py": (["--epochs", "2", "--samples", "200"], "the loss moves"),
    "convolution_weights.py": (["--epochs", "1", "--samples", "200"], "second.weight"),
    "vulnerability_map.py": (["--epochs", "2", "--limit", "8"], "bit 30 does most harm"),
    "float_words.py": (["--epochs", "2", "--samples", "200"], "infinite or nan"),
    "spiking_chip.py": (["--epochs", "3", "--inputs", "4", "--out", "{tmp}/chip.html"], "ratio"),
    "chip_faults.py": (
        ["--epochs", "2", "--inputs", "2", "--masks", "30"],
        "worst single faults of neurons",
    ),
    "events_on_a_chip.py": (
        ["--epochs", "2", "--inputs", "6", "--masks", "4", "--steps", "20"],
        "in steps 15 to 19",
    ),
    "harden_your_own.py": (["--epochs", "1", "--chips", "20"], "weights within 0.3"),
    "onnx_model.py": (
        ["--epochs", "2", "--samples", "60", "--out", "{tmp}/digits.onnx"],
        "sites: input, first, act, second",
    ),
    "spiking_training.py": (["--epochs", "2", "--steps", "5", "--samples", "200"], "of plain"),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    if name == "onnx_model.py":
        pytest.importorskip("onnx")
    arguments, expected = RUNS[name]
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    draws = '"--figure"' in (EXAMPLES / name).read_text()
    filled += ["--figure", "figure.png"] if draws else []
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *filled],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.lower()
    assert not draws or (tmp_path / "figure.png").stat().st_size > 1000


def test_every_example_is_run() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(RUNS)
