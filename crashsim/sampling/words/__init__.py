"""Faults of stored words whose bits do not add up: strata by layer and bit, importance sampling."""
