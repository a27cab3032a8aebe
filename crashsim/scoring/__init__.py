"""The table of methods, which of them are affordable, running them, and the score they give."""
