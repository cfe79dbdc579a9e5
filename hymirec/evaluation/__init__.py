"""Full ranking, metrics, intervals, groups, comparisons, files of results."""

from hymirec.evaluation.evaluate import evaluate_baseline, evaluate_model, evaluate_run
from hymirec.evaluation.ranks import Ranks, compare
from hymirec.evaluation.result import EvaluationResult
from hymirec.evaluation.results import add_row, add_run

__all__ = [
    "EvaluationResult",
    "Ranks",
    "add_row",
    "add_run",
    "compare",
    "evaluate_baseline",
    "evaluate_model",
    "evaluate_run",
]
