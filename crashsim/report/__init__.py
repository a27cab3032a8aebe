"""Scores as people read them: in a terminal and in a browser."""

from crashsim.importing import import_undrawn

import_undrawn("rich.console")
