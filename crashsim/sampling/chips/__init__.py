"""Metrics over chips: each chip is one sample of the faults, judged on all examples."""
