"""``crashsim harden`` and how ways to harden are written on a command line."""
