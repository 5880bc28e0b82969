"""Comparisons of finished runs: reads files, writes tables, pictures and verdicts; no torch."""
