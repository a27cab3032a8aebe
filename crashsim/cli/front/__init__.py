"""What a stranger meets first: help in panels, completion, how much is printed, the demo."""
