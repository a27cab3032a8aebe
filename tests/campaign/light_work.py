"""Work for other processes, which need not import torch for it."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from crashsim.campaign.tasks import Task

COMPUTED = []


@dataclass(frozen=True)
class Sum:
    value: np.float64
    rows: tuple = ()

    def __add__(self, other):
        return Sum(self.value + other.value, self.rows + other.rows)


@dataclass(frozen=True)
class Thirds(Task):
    """Sums whose last digits depend on the order in which they are added."""

    seed: int = 0
    seconds: float = 0.0
    made_of: ClassVar = (Sum,)

    def identity(self):
        return {"work": "thirds", "seed": str(self.seed)}

    def run(self, block):
        COMPUTED.append(block)
        time.sleep(self.seconds)
        return Sum(np.float64((self.seed + 1) / 3 * 10.0 ** (block % 5)), (block,))


def twice(x):
    return 2 * x


def threads():
    return os.environ["OMP_NUM_THREADS"]


def die_unless(path):
    """Ends its process the first time that it runs."""
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(block):
    os._exit(3)


def fail():
    raise ValueError("as asked")
