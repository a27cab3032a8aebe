"""Twins of a model: what runs in its place, and how what a pass leaves behind is put back."""
