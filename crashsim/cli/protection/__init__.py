"""``crashsim protect``: the command, and how schemes are written on a command line."""
