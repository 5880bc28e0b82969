"""Evaluates a trained policy on levels that it knows and on levels that it has not seen."""
