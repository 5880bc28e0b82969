"""Collects trajectories. Knows networks and environments, not algorithms."""
