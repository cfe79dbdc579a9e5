"""Full ranking, metrics, intervals, tables."""

from hymirec.evaluation.evaluate import EvaluationResult, evaluate_baseline, evaluate_model, evaluate_run

__all__ = ["EvaluationResult", "evaluate_baseline", "evaluate_model", "evaluate_run"]
