"""The report's plots, as SVG and PNG. Equal reports give equal bytes on one version of matplotlib.

SVG files carry a background and ink of their own for light and for dark pages; PNG files are light.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hymirec.artifacts import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER, GRID = "#1f2328", "#ffffff", "#d8dee4"
# What takes their place on a dark page.
DARK = {INK: "#e6edf3", PAPER: "#0d1117", GRID: "#30363d"}
# One colour a layer, readable on both papers; from the ninth layer on they begin again, dashed.
COLOURS = ("#2f81d0", "#d9772b", "#3a9d5d", "#a668c4", "#c94f6d", "#8a8f98", "#b0902f", "#2a9d9d")
COLUMNS = 4
RC: dict[Any, Any] = {
    "svg.hashsalt": "hymirec",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": PAPER,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
Plot = Callable[[dict[str, Any]], "Figure | None"]


def write_plots(report: dict[str, Any], out: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png of every plot that the report has figures for; returns {title: SVG file's name}."""
    import matplotlib as mpl

    written = {}
    for title, (name, plot) in PLOTS.items():
        with mpl.rc_context(RC):
            figure = plot(report)
            if figure is None:
                for kind in ("svg", "png"):
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
                continue
            write_atomic(out / f"{name}.svg", to_svg(figure))
            write_atomic(out / f"{name}.png", _png(figure))
        written[title] = f"{name}.svg"
    return written


def to_svg(figure: Figure) -> bytes:
    """The figure with its dark colours, without metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    rules = "".join(
        f'[style*="{key}: {light}"]{{{key}:{dark} !important}}'
        for light, dark in DARK.items()
        for key in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    text = buffer.getvalue().decode()
    head = text.index(">", text.index("<svg")) + 1
    return (text[:head] + style + text[head:]).encode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def _figure(count: int = 1) -> tuple[Figure, list[Axes]]:
    """`count` plots that share their axes' scale, four in a row."""
    from matplotlib.figure import Figure

    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    width = 6.4 if columns == 1 else max(6.4, 2.6 * columns + 0.8)
    figure = Figure(figsize=(width, 3.6 if rows == 1 else 2.5 * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def _labelled(count: int) -> set[int]:
    """Which of so many points have room for a label: the last always, then every second, third, ..."""
    step = -(-count // 6)
    return set(range(count - 1, -1, -step))


def _on_log_axis(values: list[float]) -> set[int]:
    """Which of ascending values have room for a label on a logarithmic axis: the last, and those well before it."""
    chosen, nearest = set(), float("inf")
    for number in range(len(values) - 1, -1, -1):
        if values[number] <= 0.68 * nearest:
            chosen.add(number)
            nearest = values[number]
    return chosen


def _layers_axis(axes: Axes, count: int) -> None:
    axes.set_xticks(range(1, count + 1))
    axes.set_xlim(1 - 0.06 * max(count, 4), count + 0.06 * max(count, 4))
    axes.set_xlabel("layers read (codes an item)")


def cosine_by_layer(report: dict[str, Any]) -> Figure | None:
    """Cosine of items with what their first codes decode to: mean, and bands of the items."""
    rows = report["per_layer"]
    if not report["centroids"]:
        return None
    read = range(1, len(rows) + 1)
    figure, (axes,) = _figure()
    # A single layer has no width to fill.
    shown = list(read) if len(rows) > 1 else [0.9, 1.1]
    value = {key: [row[f"cosine_{key}"] for row in rows] for key in ("mean", "p05", "p25", "p50", "p75", "p95")}
    band = {key: own if len(rows) > 1 else own * 2 for key, own in value.items()}
    axes.fill_between(shown, band["p05"], band["p95"], color=COLOURS[0], alpha=0.18, lw=0, label="90 % of items")
    axes.fill_between(shown, band["p25"], band["p75"], color=COLOURS[0], alpha=0.28, lw=0, label="50 % of items")
    axes.plot(read, value["mean"], color=COLOURS[0], marker="o", ms=5, lw=1.8, label="mean")
    for number in _labelled(len(rows)):
        x, y = number + 1, value["mean"][number]
        axes.annotate(f"{y:.3f}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
    _layers_axis(axes, len(rows))
    axes.set_ylabel("cosine with the embedding")
    axes.set_ylim(top=min(1.0, max(band["p95"])) + 0.06 * (1.0 - min(band["p05"])) + 0.002)
    axes.legend(loc="lower right")
    return figure


def load_by_layer(report: dict[str, Any]) -> Figure | None:
    """Load of centroids, heaviest first: in the fit's last pass, and in the codes of the measured items."""
    rows = report["per_layer"]
    if not all(row.get("usage_argmax", {}).get("load") for row in rows):
        return None
    figure, all_axes = _figure(len(rows))
    for number, (row, axes) in enumerate(zip(rows, all_axes, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        for key, style, label in (("usage_argmax", "-", "codes (argmax)"), ("usage_fitted", "--", "fit, last pass")):
            load = row.get(key, {}).get("load")
            if load:
                steps = max(1, len(load) - 1)
                share = [100.0 * place / steps for place in range(len(load))]
                axes.plot(share, load, style, color=colour if style == "-" else INK, lw=1.6, label=label)
        axes.set_title(f"layer {number + 1}", fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 50, 100])
        axes.set_ylim(bottom=0)
    all_axes[0].legend(loc="upper right", fontsize=9)
    figure.supylabel("load / mean load", fontsize=10)
    figure.supxlabel("centroids, heaviest first (% of them)", fontsize=10)
    return figure


def magnitudes_by_layer(report: dict[str, Any]) -> Figure | None:
    """Distribution of magnitudes, one line a layer."""
    rows = [(number, row["magnitudes"]) for number, row in enumerate(report["per_layer"]) if "magnitudes" in row]
    if not rows:
        return None
    figure, (axes,) = _figure()
    for number, own in rows:
        low, high = own["range"]
        total, bins = max(1, sum(own["counts"])), len(own["counts"])
        edges = [low + (high - low) * place / bins for place in range(bins + 1)]
        share = [100.0 * count / total for count in own["counts"]]
        colour = COLOURS[number % len(COLOURS)]
        style = "-" if number < len(COLOURS) else "--"
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.22 if len(rows) <= 4 else 0.08, lw=0)
        axes.stairs(share, edges, color=colour, ls=style, lw=1.5, label=f"layer {number + 1}")
    axes.set_ylim(bottom=0)
    axes.set_xlim(*rows[0][1]["range"])
    axes.set_xlabel("magnitude (unit of the embedding)")
    axes.set_ylabel("items (% a bin)")
    axes.legend(loc="upper right", ncols=1 if len(rows) <= 4 else 2)
    return figure


def recall_by_bytes(report: dict[str, Any]) -> Figure | None:
    """Recall@100 of true neighbours by bytes read of an item, beside the bytes of its raw embedding."""
    rows = report["per_layer"]
    if not report["centroids"]:
        return None
    figure, (axes,) = _figure()
    read, recall = [row["bytes_read"] for row in rows], [row["recall_at_100"] for row in rows]
    axes.plot(read, recall, color=COLOURS[0], marker="o", ms=5, lw=1.8, label="first codes of an item")
    for number in _on_log_axis(read):
        x, y = read[number], recall[number]
        label = f"{number + 1} layer{'s' if number else ''}\n{y:.3f}"
        axes.annotate(label, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    axes.plot([report["raw_bytes"]], [1.0], "s", color=COLOURS[1], ms=6, label="raw embedding, fp16")
    axes.set_xscale("log", base=2)
    last = max(report["raw_bytes"], read[-1])
    powers = [2**power for power in range(20) if read[0] / 2 <= 2**power <= 2 * last]
    axes.set_xticks(powers, [f"{power:,}" for power in powers])
    axes.minorticks_off()
    axes.set_xlim(read[0] / 1.5, 1.5 * last)
    axes.set_ylim(0, 1.18 if recall[-1] > 0.85 else 1.06)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel("bytes read of an item")
    axes.set_ylabel("recall@100 of true neighbours")
    axes.legend(loc="lower right")
    return figure


PLOTS: dict[str, tuple[str, Plot]] = {
    "Cosine by layers read": ("cosine", cosine_by_layer),
    "Recall by bytes read": ("recall", recall_by_bytes),
    "Load of centroids": ("load", load_by_layer),
    "Magnitudes by layer": ("magnitudes", magnitudes_by_layer),
}
