"""Training networks that suffer less."""
