"""Pictures of a report as HTML figures with inline SVG: lines and grouped bars, drawn by matplotlib.

The style is that of the codebook's report, which knows light and dark pages. Every picture says in words what it shows
(`aria-label`), and lines differ in their dashes too, so that nothing hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from hymirec.codebook.report.plots import COLOURS, INK, RC, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (6.4, 3.4)
DASHES = ("-", "--", ":", "-.")
# Names are names, not formulas between dollars.
PLAIN = {**RC, "text.parse_math": False}


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x; the point at `best` is marked."""

    name: str
    points: Sequence[tuple[float, float]]
    best: float | None = None

    @property
    def words(self) -> str:
        """First, marked and last point."""
        told = {self.points[0][0]: "", self.points[-1][0]: ""}
        if self.best is not None:
            told[self.best] = " (best)"
        shown = [f"{y:.4g} at {x:g}{told[x]}" for x, y in self.points if x in told]
        return f"{self.name}: {', '.join(shown)}."


@dataclass(frozen=True)
class Bars:
    """One value a group; None where there is none."""

    name: str
    values: Sequence[float | None]

    def words(self, groups: Sequence[str]) -> str:
        """All values."""
        pairs = zip(groups, self.values, strict=True)
        return f"{self.name}: {', '.join(f'{group} {value:.4g}' for group, value in pairs if value is not None)}."


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> str:
    """Lines over one pair of axes. Points that are not finite, and lines without any point, are left out."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    kept = [Line(line.name, [p for p in line.points if math.isfinite(p[1])], line.best) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return ""
    with mpl.rc_context(PLAIN):
        figure, axes = _axes(x_label)
        for number, line in enumerate(kept):
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
            axes.plot(*zip(*line.points, strict=True), dash, color=colour, marker="o", ms=3, lw=1.6, label=line.name)
            for x, y in line.points:
                if x == line.best:
                    axes.plot([x], [y], "o", ms=9, mfc=colour, mec=INK, mew=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _html(figure, title, f"Lines by {x_label}. " + " ".join(line.words for line in kept))


def bar_chart(title: str, groups: Sequence[str], bars: Sequence[Bars], x_label: str) -> str:
    """Bars from zero, side by side in each group."""
    import matplotlib as mpl

    with mpl.rc_context(PLAIN):
        figure, axes = _axes(x_label)
        wide = 0.8 / max(1, len(bars))
        for number, own in enumerate(bars):
            shown = [(place, value) for place, value in enumerate(own.values) if value is not None]
            places = [place + wide * (number - (len(bars) - 1) / 2) for place, _ in shown]
            colour = COLOURS[number % len(COLOURS)]
            axes.bar(places, [value for _, value in shown], 0.9 * wide, color=colour, label=own.name)
        axes.set_xticks(range(len(groups)), groups)
        axes.grid(axis="x", visible=False)
        return _html(figure, title, f"Bars by {x_label}. " + " ".join(own.words(groups) for own in bars))


def _axes(x_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    return figure, axes


def _html(figure: Figure, title: str, words: str) -> str:
    figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    svg = to_svg(figure).decode()
    label = f'class="chart" role="img" aria-label="{escape(title)}. {escape(words)}"'
    picture = f"<svg {label}{svg[svg.index('<svg') + len('<svg') :]}"
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}</figure>"
