"""The neurons of a chip."""
