"""Small networks, and studies of them, that several tests use."""

import torch

from crashsim import NeuronCrash, WeightCrash
from crashsim.studies.description import study_of

RATES = [0.02, 0.1, 0.3]
FAULTS = {"neurons": NeuronCrash(p=0.01), "weights": WeightCrash(p=0.01)}


class Given:
    """Three networks on twelve examples; two of them have as many neurons."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.nets = {
                name: torch.nn.Sequential(
                    torch.nn.Linear(4, size), torch.nn.Tanh(), torch.nn.Linear(size, 3)
                ).eval()
                for name, size in (("a", 5), ("b", 5), ("c", 8))
            }
            self.x = torch.randn(12, 4)
        self.y = self.nets["a"](self.x).argmax(1)
        self.loaded = []

    def model(self, table, study):
        self.loaded.append(table.name)
        return self.nets[table.name]

    def examples(self, table, model):
        return self.x, self.y

    def faults(self, fault, sites):
        return {sites or ("weights" if fault == "weights" else "hidden"): FAULTS[fault]}


def described(models="ab", faults=tuple(FAULTS), rates=RATES, **study):
    return study_of(
        {
            "study": {"name": "small", **study},
            "models": [{"name": name, "model": name} for name in models],
            "data": [{"name": "x", "inputs": "x"}],
            "grid": {
                "fault": list(faults),
                "rates": list(rates),
                "metric": ["accuracy", "cross-entropy"],
            },
        }
    )
