"""What can go wrong on a chip, and how often on published devices."""
