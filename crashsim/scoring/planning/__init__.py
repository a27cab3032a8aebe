"""What would run, what it costs, and what a budget buys."""
