"""A chip handed over: as a brian2 network, and as a script that runs with brian2 alone."""
