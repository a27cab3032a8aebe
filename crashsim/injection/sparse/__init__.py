"""Layers in which struck inputs and weights alone are followed."""
