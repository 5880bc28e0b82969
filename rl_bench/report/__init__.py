"""Compares finished runs: reads files, writes tables, pictures and verdicts; needs no torch."""
