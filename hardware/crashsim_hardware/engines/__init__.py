"""The engines that run a chip: brian2, brian2 synapse by synapse, and numpy."""
