"""What the first run on the chip, and the first report, leave in a process: nothing."""

import subprocess
import sys

SCRIPT = """
import logging, os, pathlib, random, signal, sys, tempfile, threading, warnings

folder = tempfile.mkdtemp()
os.environ["TMPDIR"] = tempfile.tempdir = folder

import numpy as np
import torch
from torch import nn

import crashsim

warnings.simplefilter("ignore")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
crashsim.score(net, torch.rand(2, 4), samples=50)


def state():
    return {
        "path": list(sys.path),
        "meta path": list(sys.meta_path),
        "hook": sys.excepthook,
        "handler": signal.getsignal(signal.SIGINT),
        "signal": signal.signal,
        "showwarning": warnings.showwarning,
        "filters": list(warnings.filters),
        "warnings log": list(logging.getLogger("py.warnings").handlers),
        "root log": list(logging.getLogger().handlers),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "files": sorted(p.name for p in pathlib.Path(folder).rglob("*")),
    }


before, errors = state(), []


def run():
    try:
        score = crashsim.score(net, torch.rand(2, 4, generator=torch.Generator()), samples=50,
                               methods=["monte-carlo", "hardware"])
        assert score.hardware["masks"] > 0
        score.to_html()
        str(score)
    except BaseException as error:
        errors.append(repr(error))


if sys.argv[1] == "thread":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
after = state()
changed = [name for name in before if before[name] != after[name]]
import brian2
quiet = brian2.prefs["logging.file_log"] and brian2.prefs["logging.save_script"]
print(errors, changed, bool(quiet))
"""


def run(tmp_path, where):
    script = tmp_path / "users_script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), where], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    # The preferences are the user's again.
    assert done.stdout.strip() == "[] [] True", (done.stdout, done.stderr)


def test_the_main_thread(tmp_path):
    run(tmp_path, "main")


def test_another_thread(tmp_path):
    run(tmp_path, "thread")
