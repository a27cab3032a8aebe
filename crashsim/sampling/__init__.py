"""Monte Carlo, importance and certified sampling, enumeration, and their intervals."""
