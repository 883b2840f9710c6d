"""The drawings of a report as inline SVG; their colours come from the page's style sheet, which has light and dark."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

CELL = 26
"""Side of a cell of a matrix."""

Matrix = Sequence[Sequence[float]]


def number(value: float | None) -> str:
    """The shortest text of a number."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def svg(width: float, height: float, content: str) -> str:
    """An SVG drawing; its caption describes it."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg {size} aria-hidden="true" focusable="false">{content}</svg>'


def grid(rows: Matrix, x: float = 0, y: float = 0, *, marked: frozenset[tuple[int, int]] = frozenset()) -> str:
    """A matrix; the marked cells are wrong."""
    parts = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            left, top = x + j * CELL, y + i * CELL
            kind = "cell wrong" if (i, j) in marked else "cell"
            parts.append(f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{CELL}" height="{CELL}"/>')
            parts.append(f'<text x="{left + CELL / 2:g}" y="{top + 19:g}">{number(value)}</text>')
    return "".join(parts)


def table(rows: Matrix, *, expected: Matrix | None = None) -> str:
    """A matrix as a separate drawing; cells that differ from `expected` are marked."""
    wrong: set[tuple[int, int]] = set()
    if expected is not None:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                fits = i < len(expected) and j < len(expected[i])
                if not fits or value is None or abs(value - expected[i][j]) > 1e-3 * max(1, abs(expected[i][j])):
                    wrong.add((i, j))
    width = max((len(row) for row in rows), default=0)
    return svg(width * CELL + 2, len(rows) * CELL + 2, grid(rows, 1, 1, marked=frozenset(wrong)))


def convolution_steps(image: Matrix, kernel: Matrix) -> Iterator[dict[str, Any]]:
    """Each position of the kernel: the drawing, the terms of the sum, and the result."""
    size, rows, columns = len(kernel), len(image) - len(kernel) + 1, len(image[0]) - len(kernel[0]) + 1
    for i in range(rows):
        for j in range(columns):
            products = [
                (image[i + a][j + b], kernel[a][b]) for a in range(size) for b in range(size)
            ]  # fmt: skip
            side = size * CELL
            weights = "".join(
                f'<text class="weight" x="{1 + (j + b + 1) * CELL - 2:g}" y="{1 + (i + a) * CELL + 9:g}">'
                f"×{number(kernel[a][b])}</text>"
                for a in range(size)
                for b in range(size)
            )
            window = f'<rect class="window" x="{1 + j * CELL}" y="{1 + i * CELL}" width="{side}" height="{side}"/>'
            drawing = f'<use href="#chapter-08-image"/>{window}{weights}'
            yield {
                "row": i,
                "column": j,
                "svg": svg(len(image[0]) * CELL + 2, len(image) * CELL + 2, drawing),
                "sum": " + ".join(f"{number(a)}·{number(b)}" for a, b in products),
                "result": sum(a * b for a, b in products),
            }


def convolution_result(image: Matrix, kernel: Matrix) -> list[list[float]]:
    """The results of the sums."""
    steps = list(convolution_steps(image, kernel))
    columns = len(image[0]) - len(kernel[0]) + 1
    return [[step["result"] for step in steps[start : start + columns]] for start in range(0, len(steps), columns)]


def pooling_windows(image: Matrix, window: int, *, ceil: bool) -> tuple[str, list[list[float]]]:
    """The windows on the image, including those that extend beyond it if `ceil`, and the maximum of each."""
    size = len(image)
    count = -(-(size - window) // window) + 1 if ceil else (size - window) // window + 1
    parts, result = [grid(image, 1, 1)], []
    for i in range(count):
        rows = image[i * window : (i + 1) * window]
        result.append([max(max(row[j * window : (j + 1) * window]) for row in rows) for j in range(count)])
        for j in range(count):
            x, y, side = 3 + j * window * CELL, 3 + i * window * CELL, window * CELL - 4
            parts.append(f'<rect class="window" x="{x}" y="{y}" width="{side}" height="{side}"/>')
    side = max(size, count * window) * CELL + 2
    return svg(side, side, "".join(parts)), result


def curve(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float | None]]],
    *,
    width: int = 260,
    height: int = 170,
    bottom: float | None = None,
    top: float | None = None,
) -> str:
    """A chart of lines.

    Args:
        lines: A class of the style sheet, the x values and the y values of each line.
        width: Of the drawing.
        height: Of the drawing.
        bottom: The lowest value of the y axis; by default the smallest one.
        top: The highest value of the y axis; by default the largest one.
    """
    xs = [x for _, points, _ in lines for x in points]
    ys = [y for _, _, points in lines for y in points if y is not None]
    if not ys:
        return ""
    low, high = min(ys) if bottom is None else bottom, max(ys) if top is None else top
    left, last = min(xs), max(xs)
    high, right = high if high > low else low + 1, last if last > left else left + 1
    room = 0.1 * (high - low)  # a label for zero needs a distance from the other two
    ticks = (low, high, *([0.0] if low + room < 0 < high - room else []))
    margin = 8 + 7 * max(len(number(value)) for value in ticks)

    def at(x: float, y: float) -> tuple[float, float]:
        across = margin + (x - left) / (right - left) * (width - margin - 8)
        return across, 8 + (high - y) / (high - low) * (height - 30)

    parts = []
    for value in ticks:
        _, y = at(left, value)
        parts.append(f'<path class="axis" d="M{margin} {y:.1f}H{width - 8}"/>')
        parts.append(f'<text class="tick" x="{margin - 4}" y="{y + 4:.1f}">{number(value)}</text>')
    marks: set[float] = {left, last, *([0.0] if left < 0 < last else [])}
    for value in sorted(marks):
        x, _ = at(value, low)
        parts.append(f'<text class="below" x="{x:.1f}" y="{height - 6}">{number(value)}</text>')
    for kind, points, values in lines:
        path = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in (at(a, b) for a, b in zip(points, values, strict=True) if b is not None)
        )
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        if len(points) == 1 and values[0] is not None:
            x, y = at(points[0], values[0])
            parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return svg(width, height, "".join(parts))


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A confusion matrix: a row for each true class; a darker cell has a larger share of the row."""
    side, left, top = 30, 110, 96
    parts = []
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        parts.append(f'<text class="tick" x="{left - 6}" y="{top + i * side + 20}">{escape(classes[i][:16])}</text>')
        x = left + i * side + 18
        parts.append(
            f'<text class="turned" x="{x}" y="{top - 8}" transform="rotate(-50 {x} {top - 8})">'
            f"{escape(classes[i][:16])}</text>"
        )
        for j, count in enumerate(row):
            share = count / total
            kind = "right" if i == j else "off"
            parts.append(
                f'<rect class="share {kind}" fill-opacity="{share:.2f}" x="{left + j * side}" y="{top + i * side}" '
                f'width="{side}" height="{side}"/>'
            )
            if count:
                strong = " strong" if share > 0.55 else ""
                x, y = left + j * side + side / 2, top + i * side + 19
                parts.append(f'<text class="count{strong}" x="{x:g}" y="{y}">{count}</text>')
    return svg(left + side * len(matrix) + 60, top + side * len(matrix) + 4, "".join(parts))


def agreeing(drawn: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    """The implementations grouped by equal drawings."""
    groups: list[tuple[list[str], Any]] = []
    for name, value in drawn.items():
        for names, other in groups:
            if other == value:
                names.append(name)
                break
        else:
            groups.append(([name], value))
    return groups
