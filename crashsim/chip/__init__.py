"""The bridge to crashsim_hardware: faults, NIR graphs, spiking runs."""
