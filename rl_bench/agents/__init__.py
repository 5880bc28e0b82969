"""Algorithms: how a trajectory changes the weights. Know ops, nets and types, not rollouts."""
