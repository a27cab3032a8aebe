"""The outputs of a faulty model for many points, fast."""
