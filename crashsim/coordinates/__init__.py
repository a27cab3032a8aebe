"""Points in the space of fault coordinates: where faults are placed, and how they are drawn."""
