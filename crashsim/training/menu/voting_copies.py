"""Several networks as one, whose output is their vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.errors import ModelError
from crashsim.protection.voters import Voter, make_voter


class VotingCopies(nn.Module):
    """Copies of a network that run on the same inputs; the output is their vote, output by output.

    Each copy has weights and neurons of its own, so that faults strike each by itself.

    Args:
        copies: networks with as many outputs.
        voter: as of ``crashsim.protection.voters.make_voter``.
    """

    def __init__(self, copies: Sequence[nn.Module], voter: str | Voter = "median") -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self._vote = make_voter(voter, len(self.copies))
        self.train(self.copies[0].training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The vote, (B, ...)."""
        said = [copy(*args, **kwargs) for copy in self.copies]
        if not all(isinstance(out, Tensor) and out.dim() > 0 for out in said):
            raise ModelError(
                f"model: returns {type(said[0]).__name__}; copies vote on one tensor (B, ...): "
                "wrap the model in a module that returns it"
            )
        outputs: Tensor = torch.stack(said)
        flat = outputs.flatten(2) if outputs.dim() > 2 else outputs.unsqueeze(2)
        return self._vote(flat).reshape(outputs.shape[1:])

    def sites_of(self, site: str) -> list[str]:
        """The name or glob of a network's sites, as each copy has them; all share the inputs."""
        if site in ("hidden", "weights") or site.partition(".")[0] == "input":
            return [site]
        between = "" if site.startswith(":") else "."  # a function that the network itself calls
        return [f"copies.{i}{between}{site}" for i in range(len(self.copies))]
