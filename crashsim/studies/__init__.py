"""Studies: many cases (model, data, fault, rate, metric) described in a file, and run together."""
