"""Maps of single faults, in a terminal and as a page."""
