"""The formulas of chapters 08 to 14 in plain tensor arithmetic, in float64, for comparison with components.

They index, add, multiply and reduce; autograd differentiates them. Clarity has priority over speed. They have every
option of a component, so that options can be tested together.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

Pair = int | Sequence[int]


def pair(value: Pair) -> tuple[int, int]:
    """One number for both directions, or one for each."""
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def bordered(x: Tensor, top: int, bottom: int, left: int, right: int, fill: float = 0.0) -> Tensor:
    """The images with a border of a constant."""
    height, width = x.shape[-2:]
    border = x.new_full((*x.shape[:-2], height + top + bottom, width + left + right), fill)
    inside = torch.zeros_like(border, dtype=torch.bool)
    inside[..., top : top + height, left : left + width] = True
    return border.masked_scatter(inside, x)


def extended(x: Tensor, top: int, bottom: int, left: int, right: int, mode: str) -> Tensor:
    """The images with the border of a `padding_mode` of Conv2d."""
    if mode == "zeros":
        return bordered(x, top, bottom, left, right)

    def source(i: int, size: int) -> int:
        if mode == "circular":
            return i % size
        if mode == "replicate":
            return min(max(i, 0), size - 1)
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i  # reflect

    height, width = x.shape[-2:]
    rows = [source(i, height) for i in range(-top, height + bottom)]
    columns = [source(i, width) for i in range(-left, width + right)]
    return x[..., rows, :][..., columns]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """One product of matrices for each position in the kernel."""
    x = input if input.dim() == 4 else input[None]
    (step_y, step_x), (apart_y, apart_x) = pair(stride), pair(dilation)
    height, width = weight.shape[-2:]
    if padding == "same":
        total_y, total_x = apart_y * (height - 1), apart_x * (width - 1)
        sides = (total_y // 2, total_y - total_y // 2, total_x // 2, total_x - total_x // 2)
    else:
        y, z = pair(0 if isinstance(padding, str) else padding)
        sides = (y, y, z, z)
    x = extended(x, *sides, padding_mode)
    rows = (x.shape[-2] - apart_y * (height - 1) - 1) // step_y + 1
    columns = (x.shape[-1] - apart_x * (width - 1) - 1) // step_x + 1
    size_in, size_out = weight.shape[1], weight.shape[0] // groups
    parts = []
    for g in range(groups):
        images, kernels = x[:, g * size_in : (g + 1) * size_in], weight[g * size_out : (g + 1) * size_out]
        found = images.new_zeros(len(x), size_out, rows, columns)
        for i, j in product(range(height), range(width)):
            top, left = i * apart_y, j * apart_x
            seen = images[
                ..., top : top + (rows - 1) * step_y + 1 : step_y, left : left + (columns - 1) * step_x + 1 : step_x
            ]
            found = found + torch.einsum("bchw,oc->bohw", seen, kernels[:, :, i, j])
        parts.append(found)
    output = torch.cat(parts, 1)
    if bias is not None:
        output = output + bias[:, None, None]
    return output if input.dim() == 4 else output[0]


def _windows(
    x: Tensor, kernel: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool, fill: float
) -> Tensor:
    """The numbers of each window of a pooling, in the order of the image, as the last dimension; padding is `fill`."""
    kernels, steps = pair(kernel), pair(kernel if stride is None else stride)
    pads, aparts = pair(padding), pair(dilation)
    counts, after = [], []
    for i in range(2):
        size, reach = x.shape[-2 + i], aparts[i] * (kernels[i] - 1) + 1
        free = size + 2 * pads[i] - reach
        count = (-(-free // steps[i]) if ceil_mode else free // steps[i]) + 1
        if ceil_mode and (count - 1) * steps[i] >= size + pads[i]:  # it would begin beyond the image and its padding
            count -= 1
        counts.append(count)
        after.append(max((count - 1) * steps[i] + reach - size - pads[i], 0))
    around = bordered(x, pads[0], after[0], pads[1], after[1], fill)
    seen = []
    for i, j in product(range(kernels[0]), range(kernels[1])):
        y, z = i * aparts[0], j * aparts[1]
        rows = slice(y, y + (counts[0] - 1) * steps[0] + 1, steps[0])
        columns = slice(z, z + (counts[1] - 1) * steps[1] + 1, steps[1])
        seen.append(around[..., rows, columns])
    return torch.stack(seen, -1)


def _grid(found: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in found], -2)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """The largest number of each window, the first of several, and its position in the image."""
    height, width = input.shape[-2:]
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    largest, which = _windows(input, *window, fill=-torch.inf).max(-1)
    places = torch.arange(height * width, dtype=torch.float64, device="cpu").reshape(height, width)
    positions = _windows(places, *window, fill=-1.0).long().expand(*which.shape, -1)
    return largest, positions.gather(-1, which[..., None])[..., 0]


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The sum of each window over the numbers that it counts."""
    window = (kernel_size, stride, padding, 1, ceil_mode)
    total = _windows(input, *window, fill=0.0).sum(-1)
    if divisor_override is not None:
        return total / divisor_override
    ones = torch.ones_like(input.detach())
    if count_include_pad:  # pixels beyond the padding are not counted
        y, z = pair(padding)
        ones = bordered(ones, y, y, z, z, fill=1.0)
        window = (kernel_size, kernel_size if stride is None else stride, 0, 1, ceil_mode)
        counted = _windows(ones, *window, fill=0.0).sum(-1)[..., : total.shape[-2], : total.shape[-1]]
    else:
        counted = _windows(ones, *window, fill=0.0).sum(-1)
    return total / counted


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The mean of each region of adaptive pooling."""
    asked = (output_size, output_size) if isinstance(output_size, int) else output_size
    height, width = input.shape[-2:]
    rows, columns = (size if n is None else n for n, size in zip(asked, (height, width), strict=True))

    def part(i: int, count: int, size: int) -> slice:
        return slice(i * size // count, -(-(i + 1) * size // count))

    return _grid(
        [
            [input[..., part(i, rows, height), part(j, columns, width)].mean((-2, -1)) for j in range(columns)]
            for i in range(rows)
        ]
    )


def relu(input: Tensor) -> Tensor:
    return torch.where(input > 0, input, 0.0)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(input > 0, input, negative_slope * input)


def sigmoid(input: Tensor) -> Tensor:
    return 1 / (1 + (-input).exp())


def tanh(input: Tensor) -> Tensor:
    return (input.exp() - (-input).exp()) / (input.exp() + (-input).exp())


def log_softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach()
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def softmax(input: Tensor, dim: int) -> Tensor:
    powers = (input - input.amax(dim, keepdim=True).detach()).exp()
    return powers / powers.sum(dim, keepdim=True)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = torch.einsum("...i,oi->...o", input, weight)
    return output if bias is None else output + bias


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    shape = list(input.shape) or [1]
    start, end = start_dim % len(shape), end_dim % len(shape)
    return input.reshape([*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


def normalized(x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    deviation = x - x.mean(over, keepdim=True)
    return deviation / (deviation.square().mean(over, keepdim=True) + eps).sqrt()


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    output = normalized(input, tuple(range(-len(normalized_shape), 0)), eps)
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result and the updated running statistics."""
    over, shape = (0, *range(2, input.dim())), (-1, *[1] * (input.dim() - 2))
    if training:
        output = normalized(input, over, eps)
        if running_mean is not None and running_var is not None:
            x = input.detach()
            count = x.numel() // x.shape[1]
            mean = x.mean(over)
            var = (x - mean.reshape(shape)).square().sum(over) / (count - 1)
            running_mean = (1 - momentum) * running_mean + momentum * mean
            running_var = (1 - momentum) * running_var + momentum * var
    else:
        assert running_mean is not None
        assert running_var is not None
        output = (input - running_mean.reshape(shape)) / (running_var.reshape(shape) + eps).sqrt()
    output = output if weight is None else output * weight.reshape(shape)
    return output if bias is None else output + bias.reshape(shape), running_mean, running_var


def embedding(input: Tensor, weight: Tensor) -> Tensor:
    return weight[input]


def reduced(losses: Tensor, reduction: str, total: Tensor | float | None = None) -> Tensor:
    """The losses, their sum, or their mean: the sum over `total`, which is the number of losses unless it is given."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (losses.numel() if total is None else total)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return reduced((input - target).abs(), reduction)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return reduced((input - target) ** 2, reduction)


def _by_class(input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The scores as a table with one row for each position, and the shape of the positions."""
    if input.dim() == 1:
        return input[None], ()
    last = input.movedim(1, -1)
    return last.reshape(-1, last.shape[-1]), tuple(last.shape[:-1])


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    rows, shape = _by_class(input)
    target = target.reshape(-1)
    counted = target != ignore_index
    chosen = torch.where(counted, target, 0)
    factors = (torch.ones_like(rows[0]) if weight is None else weight)[chosen] * counted
    losses = -rows[range(len(rows)), chosen] * factors
    return reduced(torch.where(counted, losses, 0.0).reshape(shape), reduction, factors.sum())


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    rows, shape = _by_class(input)
    logs, classes = log_softmax(rows, -1), rows.shape[-1]
    factors = torch.ones_like(rows[0]) if weight is None else weight
    if target.is_floating_point():
        wanted = _by_class(target)[0] * (1 - label_smoothing) + label_smoothing / classes
        return reduced(-(wanted * factors * logs).sum(-1).reshape(shape), reduction, float(len(rows)))
    counted = target.reshape(-1) != ignore_index
    chosen = torch.where(counted, target.reshape(-1), 0)
    own = -logs[range(len(rows)), chosen] * factors[chosen]
    smooth = -(logs * factors).sum(-1) / classes
    losses = torch.where(counted, (1 - label_smoothing) * own + label_smoothing * smooth, 0.0)
    return reduced(losses.reshape(shape), reduction, (factors[chosen] * counted).sum())


Weights = Mapping[str, Tensor]


def recurrent(
    kind: str,
    weights: Weights,
    input: Tensor,
    state: tuple[Tensor, ...] | None = None,
    *,
    hidden_size: int,
    num_layers: int = 1,
    batch_first: bool = False,
    bidirectional: bool = False,
    proj_size: int = 0,
    nonlinearity: str = "tanh",
) -> tuple[Tensor, ...]:
    """The outputs, the last hidden state and, for LSTM, the last cell state; `weights` are those of the layer."""
    batched = input.dim() == 3
    x = input if batched else input[:, None]
    x = x.transpose(0, 1) if batched and batch_first else x
    directions, out = 1 + bidirectional, proj_size or hidden_size
    sizes = (out, hidden_size) if kind == "LSTM" else (out,)
    if state is None:
        starts = tuple(x.new_zeros(num_layers * directions, x.shape[1], size) for size in sizes)
    else:
        starts = tuple(s if batched else s[:, None] for s in state)
    squash = relu if nonlinearity == "relu" else tanh
    lasts: list[tuple[Tensor, ...]] = []
    for layer in range(num_layers):
        sides = []
        for direction in range(directions):
            end = f"_l{layer}" + ("_reverse" if direction else "")
            w_ih, w_hh = weights["weight_ih" + end], weights["weight_hh" + end]
            b_ih, b_hh = weights.get("bias_ih" + end), weights.get("bias_hh" + end)
            now = tuple(s[layer * directions + direction] for s in starts)
            steps: list[Tensor] = []
            for t in reversed(range(len(x))) if direction else range(len(x)):
                from_x, from_h = linear(x[t], w_ih, b_ih), linear(now[0], w_hh, b_hh)
                if kind == "RNN":
                    now = (squash(from_x + from_h),)
                elif kind == "LSTM":
                    i, f, g, o = (from_x + from_h).chunk(4, -1)
                    cell = sigmoid(f) * now[1] + sigmoid(i) * tanh(g)  # pyright: ignore[reportGeneralTypeIssues]
                    hidden = sigmoid(o) * tanh(cell)
                    now = (linear(hidden, weights["weight_hr" + end]) if proj_size else hidden, cell)
                else:
                    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
                    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
                    now = ((1 - z) * tanh(n_x + r * n_h) + z * now[0],)
                steps.append(now[0])
            lasts.append(now)
            sides.append(torch.stack(steps[::-1] if direction else steps))
        x = torch.cat(sides, -1)
    ends = tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))
    if not batched:
        return x[:, 0], *(end[:, 0] for end in ends)
    return x.transpose(0, 1) if batch_first else x, *ends


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """A bool mask keeps the True positions; a float mask is added."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = torch.einsum("...qf,...kf->...qk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device="cpu").tril()
    return torch.einsum("...qk,...kf->...qf", softmax(masked(scores, attn_mask), -1), value)


def multihead_attention(
    weights: Weights,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    batch_first: bool = False,
    add_zero_attn: bool = False,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    prefix: str = "",
) -> tuple[Tensor, Tensor]:
    """The output and the weights of attention. Bool masks exclude the True positions."""
    w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x[:, None] for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    elif batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if "in_proj_weight" in w:
        w_q, w_k, w_v = w["in_proj_weight"].chunk(3)
    else:
        w_q, w_k, w_v = (w[f"{name}_proj_weight"] for name in "qkv")
    b_q, b_k, b_v = w["in_proj_bias"].chunk(3) if "in_proj_bias" in w else (None, None, None)
    q, k, v = linear(query, w_q, b_q), linear(key, w_k, b_k), linear(value, w_v, b_v)
    extra = 0
    if "bias_k" in w:
        k, v = (torch.cat([x, w[n].expand(1, x.shape[1], -1)]) for x, n in ((k, "bias_k"), (v, "bias_v")))
        extra += 1
    if add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (k, v))
        extra += 1
    q, k, v = (x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))  # batch, head, position
    scores = torch.einsum("bhqf,bhkf->bhqk", q, k) * q.shape[-1] ** -0.5
    for mask, shape in ((attn_mask, None), (key_padding_mask, (len(scores), 1, 1, -1))):
        if mask is None:
            continue
        number = (
            torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask
        )
        number = torch.cat([number, number.new_zeros(*number.shape[:-1], extra)], -1)
        if shape is not None:
            number = number.reshape(shape)
        elif number.dim() == 3:
            number = number.unflatten(0, (len(scores), num_heads))
        scores = scores + number
    attention = softmax(scores, -1)
    output = torch.einsum("bhqk,bhkf->qbhf", attention, v).flatten(-2)
    output = linear(output, w["out_proj.weight"], w.get("out_proj.bias"))
    attention = attention.mean(1) if average_attn_weights else attention
    if not batched:
        return output[:, 0], attention[0]
    return output.transpose(0, 1) if batch_first else output, attention


def gelu(input: Tensor) -> Tensor:
    return input * (1 + torch.erf(input / math.sqrt(2))) / 2


def encoder_layer(
    weights: Weights,
    src: Tensor,
    *,
    nhead: int,
    activation: str = "relu",
    batch_first: bool = False,
    norm_first: bool = False,
    eps: float = 1e-5,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
) -> Tensor:
    """TransformerEncoderLayer in evaluation."""

    def attend(x: Tensor) -> Tensor:
        return multihead_attention(
            weights,
            x,
            x,
            x,
            num_heads=nhead,
            batch_first=batch_first,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            prefix="self_attn.",
        )[0]

    def feed(x: Tensor) -> Tensor:
        squash = relu if activation == "relu" else gelu
        hidden = squash(linear(x, weights["linear1.weight"], weights.get("linear1.bias")))
        return linear(hidden, weights["linear2.weight"], weights.get("linear2.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), eps)

    if norm_first:
        x = src + attend(norm(src, "norm1"))
        return x + feed(norm(x, "norm2"))
    x = norm(src + attend(src), "norm1")
    return norm(x + feed(x), "norm2")
