"""Score any torch model in ten lines: how far its outputs move when 1% of its neurons die."""

import torch

import crashsim
from crashsim import NeuronCrash


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
    ).eval()
    inputs = torch.randn(8, 16)

    score = crashsim.score(model, inputs, NeuronCrash(p=0.01), sites="hidden", epsilon=0.2)

    print(score.verdict)
    for method in ("taylor", "mean-point-single", "monte-carlo"):
        print(score.find(method, "variance"))
    print(score.find("importance-sampling", "class-change"))


if __name__ == "__main__":
    main()
