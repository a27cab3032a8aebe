"""Samples with parameters of their own: patched for one at a time, or stacked for many."""
