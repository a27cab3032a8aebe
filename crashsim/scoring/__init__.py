"""The methods of a score: which are affordable, running them, what they give."""
