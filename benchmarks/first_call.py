"""What the first calls of a fresh process cost, against `import torch`.

    python benchmarks/first_call.py [--repeats 5]

Each run is a process of its own, in which torch is imported, then crashsim's Monte Carlo, then a
first run of it, a score, and both once more. CPU time, medians, in multiples of torch's import.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

STEPS = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
passed = {}

def timed(name, step):
    start = time.process_time()
    found = step()
    passed[name] = time.process_time() - start
    return found

def load(name):
    return __import__(name)

torch = timed("import torch", lambda: load("torch"))
torch.manual_seed(0)
torch.set_num_threads(1)
nn = torch.nn
net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 10)).eval()
x = torch.randn(4, 16)
crashsim = load("crashsim")
timed("import what samples", lambda: (crashsim.FaultSpace, crashsim.monte_carlo))
fault = crashsim.NeuronCrash(0.01) if sys.argv[1] == "neurons" else crashsim.BitFlip(1e-4)
sites = "hidden" if sys.argv[1] == "neurons" else "weights"

def sampled():
    crashsim.monte_carlo(crashsim.FaultSpace(net, x, fault, sites), samples=100)

def scored():
    crashsim.score(net, x, fault, sites, samples=100)

timed("first monte_carlo", sampled)
timed("second monte_carlo", sampled)
timed("first score, with its imports", scored)
timed("second score", scored)
slow = [name for name in ("sympy", "scipy.optimize") if name in sys.modules]
print(json.dumps([passed, slow]))
"""


def measured(kind: str) -> tuple[dict[str, float], list[str]]:
    """CPU seconds of each step in a fresh process, and which slow modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, kind],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    passed, slow = json.loads(done.stdout)
    return passed, slow


def main() -> None:
    repeats = int(sys.argv[sys.argv.index("--repeats") + 1]) if "--repeats" in sys.argv else 5
    for kind in ("neurons", "weights"):
        runs = [measured(kind) for _ in range(repeats)]
        torch = statistics.median(passed["import torch"] for passed, _ in runs)
        print(f"faults of {kind} (import torch: {torch:.2f} s)")
        for name in runs[0][0]:
            taken = statistics.median(passed[name] for passed, _ in runs)
            print(f"  {name:30} {taken / torch:6.3f}")
        print(f"  loaded: {', '.join(runs[0][1]) or 'neither sympy nor scipy.optimize'}")


if __name__ == "__main__":
    main()
