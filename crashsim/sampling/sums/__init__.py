"""Sums over samples from which intervals follow."""
