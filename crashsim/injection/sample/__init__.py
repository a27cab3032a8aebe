"""One sample of the faults by name: what it strikes, a model with these faults, and its files."""

from crashsim.injection.sample.sample import Sample
from crashsim.injection.sample.strikes import Strike

__all__ = ["Sample", "Strike"]
