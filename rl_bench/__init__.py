"""Trains agents on CPUs, sequentially or in parallel, and compares the runs."""

__version__ = "0.1.0"
