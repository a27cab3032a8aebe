"""Tail probabilities P(Delta >= eps) of linear surrogates: estimates, bounds and proofs."""
