"""Models, data, architectures and users' code: what may run code, and what never does."""
