"""Training that does not know which engine, cluster or model it serves: `fit` runs a `TrainTask` on an `Engine`."""

from hymirec.training.loop import FitResult, fit
from hymirec.training.reporter import LocalReporter, Reporter
from hymirec.training.task import TrainTask

__all__ = ["FitResult", "LocalReporter", "Reporter", "TrainTask", "fit"]
