"""Curves: a metric of faulty chips against the rate of faults, measured and predicted."""
