"""Holds the settings: defines their schema, merges files and flags, derives some from others."""
