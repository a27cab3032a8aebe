"""What holds for certain: enclosures, relaxations, remainders, certificates."""
