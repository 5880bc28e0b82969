"""Runs the training loop of every mode: decides when it stops, records it and saves it."""
