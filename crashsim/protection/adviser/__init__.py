"""The adviser: what to protect, and how, for a target or under a budget."""
