"""The weights that a model multiplies: where they are, their names, how they are stored."""
