"""Any torch model as crashsim meets it: inputs, readout, sites, graph, layers, calls."""
