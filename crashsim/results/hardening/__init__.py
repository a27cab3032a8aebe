"""Ways to harden a network, compared, as data; and what is said of them."""
