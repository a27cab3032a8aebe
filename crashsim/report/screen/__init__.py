"""What one screen of a terminal shows of a record; the rest is in the details and the report."""
