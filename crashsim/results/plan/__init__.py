"""A plan of protection: as data, and in words."""
