"""Algorithms: how a trajectory changes the weights. Know ops, native and nets, not rollouts."""
