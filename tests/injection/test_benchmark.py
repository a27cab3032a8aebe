"""The engine's benchmark runs, and its naive loop and ours agree on what they compute."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "engine.py"


def test_the_quick_benchmark_prints_its_tables():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for part in ("one thread", "ratio", "weights, layer 1", "a = ", "peak", "computed once"):
        assert part in run.stdout
