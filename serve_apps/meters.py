"""The metrics of `hymirec.telemetry`, kept by Ray Serve."""

from __future__ import annotations

from ray.serve import metrics

from hymirec.telemetry import Metric

Kept = metrics.Counter | metrics.Gauge | metrics.Histogram


class Meters:
    """An `Observe`. A metric begins with its first value, inside the replica, whose labels Serve adds to it."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def __call__(self, metric: Metric, value: float, **labels: str) -> None:
        """See `hymirec.telemetry.Observe`."""
        kept = self._kept.get(metric.name) or self._kept.setdefault(metric.name, _begin(metric))
        if isinstance(kept, metrics.Counter):
            # Ray refuses to add nothing.
            if value > 0:
                kept.inc(value, tags=labels)
        elif isinstance(kept, metrics.Gauge):
            kept.set(value, tags=labels)
        else:
            kept.observe(value, tags=labels)


def _begin(metric: Metric) -> Kept:
    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.help, tag_keys=metric.labels)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.help, tag_keys=metric.labels)
    return metrics.Histogram(metric.name, metric.help, boundaries=list(metric.boundaries), tag_keys=metric.labels)
