"""Holds the settings: their schema, how files and flags become one, what follows from what."""
