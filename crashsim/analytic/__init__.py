"""Theory's numbers: surrogates, tails, bounds and proofs."""
