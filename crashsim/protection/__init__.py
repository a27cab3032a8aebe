"""Replicas and the voters among them."""
