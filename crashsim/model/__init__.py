"""Any torch model as crashsim meets it: inputs, readout, sites, layers, calls."""
