"""The time of the reference's convolution as a function of the number of pixels and of the product of channels."""

import math
from collections.abc import Callable, Sequence

import torch

from benchmarks.pairs import shortest
from reference.nn.convolution import conv2d

BATCH = 16


def seconds_of(channels: int, size: int) -> float:
    """Forward and backward of a 5×5 convolution from `channels` to `channels`, images of `size` × `size` pixels."""
    x = torch.randn(BATCH, channels, size, size, requires_grad=True)
    w = torch.randn(channels, channels, 5, 5, requires_grad=True)
    upstream = torch.randn(BATCH, channels, size, size)
    return shortest(lambda: torch.autograd.grad(conv2d(x, w, padding=2), (x, w), upstream), 0.3)


def curves() -> dict[str, list[tuple[float, float]]]:
    """(pixels or channels' product, seconds) for each of the two."""
    return {
        "pixels of an image": [(size**2, seconds_of(32, size)) for size in (8, 16, 32, 64, 128)],
        "input × output channels": [(c * c, seconds_of(c, 16)) for c in (16, 32, 64, 128, 256)],
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of the best-fitting power law time ~ size^p, by least squares on logarithms."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)


def svg(title: str, points: Sequence[tuple[float, float]], axis: str) -> str:
    """The points on logarithmic axes, with a line of slope 1 through the last of them."""
    width, height, margin = 480, 360, 60
    (low, high), (fast, slow) = ((min(column), max(column)) for column in zip(*points, strict=True))

    def place(lowest: float, highest: float, start: float, end: float) -> Callable[[float], float]:
        scale = (end - start) / max(math.log(highest / lowest), 1e-9)
        return lambda value: start + scale * math.log(value / lowest)

    x = place(low, high, margin, width - margin / 2)
    y = place(min(fast, slow * low / high), slow, height - margin, margin)
    dots = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4"/>' for a, b in points)
    labels = "".join(
        f'<text x="{x(a):.1f}" y="{height - margin + 18}" text-anchor="middle">{a:g}</text>'
        f'<text x="{x(a):.1f}" y="{y(b) - 9:.1f}" text-anchor="middle">{1e3 * b:.3g} ms</text>'
        for a, b in points
    )
    line = (
        f'<line x1="{x(low):.1f}" y1="{y(slow * low / high):.1f}" x2="{x(high):.1f}" y2="{y(slow):.1f}" '
        f'stroke="gray" stroke-dasharray="4"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{width / 2}" y="24" text-anchor="middle" font-size="14">{title}</text>'
        f"{line}{dots}{labels}"
        f'<text x="{width / 2}" y="{height - 14}" text-anchor="middle">{axis} (dashed: linear growth)</text></svg>\n'
    )
