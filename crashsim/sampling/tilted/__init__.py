"""Importance sampling: faults drawn where they hurt, and weighted back."""
