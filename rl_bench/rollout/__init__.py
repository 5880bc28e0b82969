"""Where trajectories come from. Knows networks and environments, not algorithms."""
