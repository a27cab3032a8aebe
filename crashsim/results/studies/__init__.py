"""The records of studies: a line for each case, and what changed between two of them."""
