"""Compares finished runs: tables, pictures, statistics."""

from rl_bench.cli import compare

if __name__ == "__main__":
    raise SystemExit(compare())
