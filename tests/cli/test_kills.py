"""Kills at random moments of every command that writes: nothing torn, what is cut short says so.

Slow: ``make test-all`` runs it, and prints what the kills found. ``KILLS`` (100) is their number,
``KILLS_SEED`` (0) chooses their moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from crashsim import Score
from crashsim.errors import FileError
from crashsim.files.models import load_model

KILLS, SEED = (int(os.environ.get(name, str(n))) for name, n in (("KILLS", 100), ("KILLS_SEED", 0)))
PROGRAM = [sys.executable, "-c", "from crashsim.cli import main; main()"]
# Each command, and the files that it writes.
COMMANDS = {
    "score m --samples 3000 --limit 8 --epsilon 0.5 --seed {} --json s.json --report s.html": (
        "s.json", "s.html",
    ),
    "score 64-8-10 --inits 3 --samples 500 --limit 4 --seed {} --json i.json --report i.html": (
        "i.json", "i.html",
    ),
    "compare 64-8-10 64-12-10 m --samples 2000 --limit 8 --seed {} --json c.json": ("c.json",),
    "train 64-8-10 --epochs 3 --seed {} --out t": ("t.json", "t.safetensors"),
    "harden 64-12-10:sigmoid --epsilon 1 --delta 0.05 --epochs 2 --seed {} --out h --json p.json": (
        "h.json", "h.safetensors", "p.json",
    ),
    "hardware m --engine numpy --masks 40 --steps 20 --limit 4 --seed {} --json w.json": (
        "w.json",
    ),
    "report old.json --out r{}.html": (),
}  # fmt: skip


def start(line, folder, seed):
    return subprocess.Popen(
        PROGRAM + line.format(seed).split(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore it, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def contents(folder, names):
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def check_told(name, content):
    """Fails unless a JSON is marked as partial exactly where something is missing."""
    plain = json.loads(content)
    plain = plain.get("facts", {}).get("hardening", plain)
    missing = {
        "s.json": lambda: plain["samples"] < 3000 or "interrupted" in str(plain["skipped"]),
        "i.json": lambda: len(plain["inits"]) < 2 or plain["inits"][-1]["partial"],
        "c.json": lambda: len(plain["contenders"]) < 3,
        "h.json": lambda: plain["statement"].startswith("Interrupted"),
        "p.json": lambda: plain["statement"].startswith("Interrupted"),
    }
    if name in missing:
        assert plain["partial"] == bool(missing[name]()), name
    if plain.get("partial"):
        assert not plain.get("reached")


def check_whole(folder, after):
    """Fails where a file is torn, or files that are no model are taken for one."""
    for name, content in after.items():
        if name.endswith(".json"):
            check_told(name, content)
        elif name.endswith(".html"):
            assert content.rstrip().endswith(b"</html>"), name
    if "s.json" in after:
        Score.load(folder / "s.json")
    for name in ("t", "h"):
        both = {f"{name}.json", f"{name}.safetensors"}
        if both <= after.keys():
            try:
                load_model(str(folder / name))
            except FileError as error:
                if "does not go with the description" not in str(error):
                    raise


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    moments = random.Random(SEED)
    for line in (
        "train 64-8-10 --epochs 1 --out m",
        "score m --samples 200 --limit 2 --json old.json",
    ):
        running = start(line, tmp_path, 0)
        told, _ = running.communicate()
        assert running.returncode == 0, told
    length, counts = {}, Counter()
    for line in COMMANDS:
        begin = time.monotonic()
        start(line, tmp_path, 0).communicate()
        length[line] = time.monotonic() - begin
    for kill in range(1, KILLS + 1):
        line = list(COMMANDS)[kill % len(COMMANDS)]
        names = COMMANDS[line] or (f"r{kill}.html",)
        if moments.random() < 0.3:  # some find nothing there
            for name in names:
                (tmp_path / name).unlink(missing_ok=True)
        before = contents(tmp_path, names)
        running = start(line, tmp_path, kill)
        time.sleep(moments.uniform(0.1, 1.05) * length[line])
        number = moments.choice((signal.SIGKILL, signal.SIGINT))
        running.send_signal(number)
        told, _ = running.communicate()
        code, after = running.returncode, contents(tmp_path, names)
        what = f"kill {kill}: {line}: {number.name}, exit {code}: {told[-2000:]}"
        check_whole(tmp_path, after)
        new = [name for name in names if after.get(name, b"") != before.get(name, b"")]
        left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
        if number is signal.SIGINT:
            # Python ends by the signal itself where it has not begun, or has ended, to listen.
            assert code in (0, 130, -signal.SIGINT), what
            assert code == -signal.SIGINT or "Traceback" not in told, what
            assert not left, what
        for path in left:  # which a program that is killed cannot take away
            path.unlink()
        state = "all new" if len(new) == len(names) else "some new" if new else "as before"
        counts[line.split()[0], number.name, code, state] += 1
    for (command, name, code, state), count in sorted(counts.items()):
        print(f"{count:3} {command:8} {name:7} exit {code:4}: {state}")
