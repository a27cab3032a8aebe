"""The benchmarks run; the engine's naive loop and ours agree on what they compute."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_quick_benchmark_prints_its_tables():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "engine.py"), "--quick", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in ("one thread", "ratio", "weights, layer 1", "a = ", "peak", "computed once"):
        assert part in run.stdout


def test_the_quick_benchmark_of_scores_prints_its_tables():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "score.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in ("one thread", "weights, all", "BitFlip", "a tail: ", "convolutional, 6,272"):
        assert part in run.stdout


def test_the_benchmark_of_first_calls_prints_its_steps():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "first_call.py"), "--repeats", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("second score") == run.stdout.count("loaded:") == 2


@pytest.mark.slow
def test_the_quick_benchmark_of_architectures_prints_a_line_each():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "architectures.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 12
    assert all("monte-carlo" in line and "planned" in line for line in lines)


def test_the_quick_benchmark_of_single_faults_prints_its_lines():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "vulnerability.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("of intervals hold over") == 2
    assert "0.weight" in run.stdout


@pytest.mark.slow
def test_the_quick_benchmark_of_a_resnet_prints_its_lines():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "resnet20.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in ("all gains in", "a sample is worth", "by the law", "a default score"):
        assert part in run.stdout


@pytest.mark.slow
def test_the_quick_benchmark_of_a_predicted_curve_prints_its_lines():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "curve.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("9 rates in") == 2
    assert run.stdout.count("predicted, ") == 6


def test_the_quick_benchmark_of_campaigns_prints_its_tables():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "campaign.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in ("written alone", "opened in", "times the work of one", "of their time"):
        assert part in run.stdout
