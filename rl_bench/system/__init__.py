"""Tells facts about the machine: cores, memory, host. Knows nothing of a run's plan."""
