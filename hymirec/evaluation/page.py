"""A report as one HTML page: no script, nothing from the network, light and dark by the reader's own setting."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hymirec.codebook.report.plots import DARK, GRID, INK, PAPER

STYLE = (
    f":root{{color-scheme:light dark;--ink:{INK};--paper:{PAPER};--grid:{GRID};--soft:#57606a;--mark:#e7f1fb}}"
    f"@media (prefers-color-scheme:dark){{:root{{--ink:{DARK[INK]};--paper:{DARK[PAPER]};--grid:{DARK[GRID]};"
    "--soft:#9aa4af;--mark:#12304d}}"
    "body{margin:0 auto;max-width:76rem;padding:1.5rem;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,sans-serif}"
    "h1{font-size:1.7rem;margin:0 0 .3rem}h2{margin:2.6rem 0 .4rem;border-bottom:1px solid var(--grid)}"
    "h3{margin:1.8rem 0 .3rem}h4{margin:0 0 .3rem}p{margin:.4rem 0;max-width:56rem}"
    ".soft,caption{color:var(--soft)}"
    ".grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1.4rem}"
    "figure{margin:.6rem 0}figcaption{font-weight:600}"
    ".chart{width:100%;height:auto}"
    ".wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.9rem}"
    "caption{text-align:left;padding:.2rem 0}th,td{padding:.25rem .7rem;border-bottom:1px solid var(--grid);"
    "text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600}"
    "th:first-child,.text :is(td,th){text-align:left}thead th{vertical-align:bottom}tr.mark>*{background:var(--mark)}"
    ".card{border:1px solid var(--grid);border-radius:8px;padding:.8rem 1rem}"
    ".card ol{margin:.3rem 0;padding-left:1.5rem}"
    "mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 .2rem}"
    ".note{border-left:4px solid #d9772b;padding:.2rem .9rem}summary{cursor:pointer}"
    "code{font-size:.88em;overflow-wrap:anywhere}"
)


def page(title: str, body: str) -> str:
    """The whole document; `body` is HTML, `title` is not."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None, kind: str = "figures"
) -> str:
    """A table of plain texts (escaped here), the first column names the row; it scrolls by itself when too wide.

    The row number `marked` stands out. `kind` is "figures" (to the right) or "text".
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for number, (first, *cells) in enumerate(rows):
        start = '<tr class="mark">' if number == marked else "<tr>"
        own = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'{start}<th scope="row">{escape(first)}</th>{own}</tr>')
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def folded(summary: str, body: str) -> str:
    """HTML that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
