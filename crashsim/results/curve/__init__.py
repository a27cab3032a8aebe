"""Curves over rates, as the plain data of a record and as what is shown."""
