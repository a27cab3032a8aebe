"""NIR graphs: chips from the files of other libraries, and files of chips."""

from .conventions import CONVENTIONS, Convention
from .reading import read_nir
from .writing import nir_graph, write_nir

__all__ = ["CONVENTIONS", "Convention", "nir_graph", "read_nir", "write_nir"]
