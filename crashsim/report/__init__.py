"""Scores as people read them: in a terminal and in a browser."""
