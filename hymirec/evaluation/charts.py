"""Pictures of a report as HTML figures with inline SVG: lines and grouped bars, drawn here, without a library.

Ink, paper and colours come from `page.STYLE`, which knows light and dark pages. Every picture says in words what it
shows (`aria-label`), and lines differ in their dashes too, so that nothing hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Units of the picture's own coordinates; the page scales it.
WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 46
COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3")
TICKS = 6


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
    kept = [Line(line.name, [p for p in line.points if math.isfinite(p[1])], line.best) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return ""
    x_all = [x for line in kept for x, _ in line.points]
    y_all = [y for line in kept for _, y in line.points]
    x_ticks = [x for x in ticks(min(x_all), max(x_all), TICKS + 2) if x == int(x) and min(x_all) <= x <= max(x_all)]
    y_ticks = ticks(min(y_all), max(y_all))
    x_axis = _Axis(min(x_all), max(x_all), LEFT + 8, WIDTH - RIGHT - 8)
    y_axis = _Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(y_ticks, y_axis), _x_label(x_label)]
    parts += [_text(x_axis.at(x), HEIGHT - BOTTOM + 17, f"{x:g}", "middle") for x in x_ticks]
    for number, line in enumerate(kept):
        style = f'class="k{number % COLOURS}" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
        places = [(x, y, x_axis.at(x), y_axis.at(y)) for x, y in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for _, _, px, py in places)
        parts.append(f'<polyline {style} points="{path}"/>')
        for x, y, px, py in places:
            size, mark = (6, " best") if x == line.best else (2.5, "")
            tip = f"<title>{escape(line.name)}, {x:g}: {y:.4f}{mark}</title>"
            parts.append(
                f'<circle class="f{number % COLOURS}{mark}" cx="{px:.1f}" cy="{py:.1f}" r="{size}">{tip}</circle>'
            )
    legend = _legend([line.name for line in kept], dashed=True)
    return _figure(title, f"Lines by {x_label}. " + " ".join(line.words for line in kept), legend, parts)


def bar_chart(title: str, groups: Sequence[str], bars: Sequence[Bars], x_label: str) -> str:
    """Bars from zero, side by side in each group."""
    top = max((value for own in bars for value in own.values if value is not None), default=0.0)
    y_ticks = ticks(0.0, top or 1.0)
    y_axis = _Axis(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    wide = min(34.0, slot * 0.8 / max(1, len(bars)))
    parts = [*_grid(y_ticks, y_axis), _x_label(x_label)]
    for place, group in enumerate(groups):
        middle = LEFT + slot * (place + 0.5)
        parts.append(_text(middle, HEIGHT - BOTTOM + 17, group, "middle"))
        for number, own in enumerate(bars):
            value = own.values[place]
            if value is None:
                continue
            x, y = middle + wide * (number - len(bars) / 2), y_axis.at(value)
            tip = f"<title>{escape(own.name)}, {escape(group)}: {value:.4f}</title>"
            box = f'x="{x + 1:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
            parts.append(f'<rect class="f{number % COLOURS}" {box}>{tip}</rect>')
    words = f"Bars by {x_label}. " + " ".join(own.words(groups) for own in bars)
    return _figure(title, words, _legend([own.name for own in bars], dashed=False), parts)


def ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) that span low..high, ascending."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    exponent = math.floor(math.log10((high - low) / most))
    for step in (factor * 10.0**power for power in (exponent, exponent + 1, exponent + 2) for factor in (1, 2, 5)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            return [round(number * step, 12) for number in range(first, last + 1)]
    raise AssertionError("a step of a hundred times the range spans it")  # pragma: no cover


@dataclass(frozen=True)
class _Axis:
    """Values low..high on pixels start..stop."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def _grid(y_ticks: Sequence[float], axis: _Axis) -> list[str]:
    lines = []
    for y in y_ticks:
        place = axis.at(y)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        lines.append(_text(LEFT - 7, place + 4, f"{y:g}", "end"))
    return lines


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _x_label(words: str) -> str:
    return _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, words, "middle")


def _legend(names: Sequence[str], dashed: bool) -> str:
    """A list of names with a sample of each, in order."""
    items = []
    for number, name in enumerate(names):
        colour, dash = number % COLOURS, DASHES[number % len(DASHES)]
        sample = (
            f'<line class="k{colour}" stroke-dasharray="{dash}" x1="0" x2="26" y1="6" y2="6"/>'
            if dashed
            else f'<rect class="f{colour}" x="7" y="0" width="12" height="12"/>'
        )
        items.append(f'<li><svg aria-hidden="true" width="26" height="12">{sample}</svg> {escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(title: str, words: str, legend: str, parts: Sequence[str]) -> str:
    picture = (
        f'<svg class="chart" role="img" aria-label="{escape(title)}. {escape(words)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{picture}{''.join(parts)}</svg></figure>"
