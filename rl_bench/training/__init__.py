"""The loop, when it stops, what it records, and how it is saved. The same for every mode."""
