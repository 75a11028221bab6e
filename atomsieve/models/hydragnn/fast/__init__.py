"""HydraGNN's model without autograd, on a CPU and on a GPU."""
