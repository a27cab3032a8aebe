"""The law of a sum of very many independent small contributions, by FFT."""
