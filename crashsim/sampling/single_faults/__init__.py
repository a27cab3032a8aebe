"""Single faults, judged where they may matter: which, on which examples, and what follows."""
