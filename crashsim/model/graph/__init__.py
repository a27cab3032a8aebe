"""A torch model as a graph of operations with their sites, traced by torch.fx."""
