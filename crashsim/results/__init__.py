"""What was found: estimates, scores as data, and whether they agree."""
