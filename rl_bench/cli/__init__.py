"""Implements the command line, which the entry scripts call.

Heavy modules are imported inside functions, so that `--help` and a mistake answer at once.
"""

from rl_bench.cli.benchmark import benchmark
from rl_bench.cli.compare import compare
from rl_bench.cli.evaluate import evaluate
from rl_bench.cli.training import train

__all__ = ["benchmark", "compare", "evaluate", "train"]
