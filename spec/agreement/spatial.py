"""Random calls of convolution, pooling, activations, linear layers and containers."""

import collections
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reference import pool2d_output_size
from spec.agreement.comparison import Call, Draw, Namespace, Observed, coarsest, differentiate, leaf
from spec.support.strategies import seed_all

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def seldom(rng: random.Random, chance: float, rare: Callable[[], Any], usual: Callable[[], Any]) -> Any:
    return rare() if rng.random() < chance else usual()


def number(rng: random.Random, low: int, high: int, bad: float = 0.02) -> int:
    return seldom(rng, bad, lambda: rng.choice([0, -1, low - 1]), lambda: rng.randint(low, high))


def size2(rng: random.Random, low: int, high: int, bad: float = 0.02) -> Any:
    """An integer, a pair, a list, a single-element tuple, or rarely an invalid value."""
    kind = rng.random()
    if kind < 0.45:
        return number(rng, low, high, bad)
    if kind < 0.9:
        return rng.choice([tuple, list])((number(rng, low, high, bad), number(rng, low, high, bad)))
    if kind < 0.97:
        return (rng.randint(low, high),)
    return rng.choice([2.0, "2", (1, 1, 1), True, (1.5, 1)])


def tensor(
    rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, special: float = 0.0, ties: bool = False
) -> Tensor:
    """Random numbers of any memory layout: contiguous, channels_last, transposed or sliced."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    layout = rng.random()
    if layout < 0.1 and len(shape) == 4:
        x = torch.randn(shape, generator=g, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    elif layout < 0.2 and len(shape) >= 2:
        x = torch.randn((*shape[:-2], shape[-1], shape[-2]), generator=g, dtype=torch.float64).transpose(-1, -2)
    elif layout < 0.3 and len(shape) >= 1:
        x = torch.randn((*shape[:-1], 2 * shape[-1] + 1), generator=g, dtype=torch.float64)[..., 1::2]
    else:
        x = torch.randn(shape, generator=g, dtype=torch.float64)
    if ties:
        x = (x * 1.5).round()
    if special and x.numel():
        picks = torch.rand(x.shape, generator=g)
        for value, at in ((math.nan, 0.02), (math.inf, 0.04), (-math.inf, 0.06), (0.0, 0.1), (-0.0, 0.14)):
            if rng.random() < special:
                x = torch.where((picks < at) & (picks >= at - 0.02), value, x)
    if not dtype.is_floating_point:
        x = (x.nan_to_num(0, 9, -9) * 4).clamp(-100, 100)
        x = x.abs() if dtype == torch.uint8 else x
    return x.to(dtype)


def plane(rng: random.Random, channels: int, low: int = 3, high: int = 12) -> tuple[int, ...]:
    """An image's shape: batched or not, rarely empty or with a wrong number of dimensions."""
    shape = [
        rng.choice([0, 1, 2, 3]) if rng.random() < 0.15 else rng.randint(1, 3),
        channels,
        rng.randint(low, high),
        rng.randint(low, high),
    ]
    if rng.random() < 0.25:
        shape = shape[1:]
    if rng.random() < 0.02:
        shape = rng.choice([shape[1:-1], [1, *shape, 2], shape[:1]])
    if rng.random() < 0.02:
        shape[rng.randrange(len(shape))] = 0
    return tuple(shape)


def float_dtype(rng: random.Random) -> torch.dtype:
    return rng.choices(FLOATS, (6, 3, 1, 1))[0]


def conv_options(rng: random.Random) -> tuple[Any, Any, Any, Any]:
    kernel = (rng.randint(1, 4), rng.randint(1, 4))
    stride = size2(rng, 1, 3)
    if rng.random() < 0.25:
        padding = rng.choices(["same", "valid", "none"], (6, 3, 0.3))[0]
        stride = rng.choice([1, (1, 1), 1, 2])
    else:
        padding = size2(rng, 0, 3, bad=0.01)
    return kernel, stride, padding, size2(rng, 1, 3) if rng.random() < 0.4 else 1


def conv2d(rng: random.Random) -> Call:
    groups = rng.choices([1, 2, 3, 0, -1], (6, 3, 2, 0.1, 0.1))[0]
    g = max(1, groups)
    inner, outer = rng.randint(1, 3), rng.randint(1, 3)
    kernel, stride, padding, dilation = conv_options(rng)
    # PyTorch's CPU kernel for dilated convolutions supports only int64 among the integer dtypes.
    integers = [torch.int64, torch.int32, torch.uint8] if dilation == 1 else [torch.int64]
    dtype = seldom(rng, 0.1, lambda: rng.choice([*integers, torch.complex128]), lambda: float_dtype(rng))
    real = torch.float64 if dtype.is_complex else dtype
    # PyTorch's CPU kernel for bfloat16 multiplies by zeros that it adds, which turns infinities into NaN.
    special = 0.3 if rng.random() < 0.1 and dtype in (torch.float64, torch.float32, torch.float16) else 0.0
    x = tensor(rng, plane(rng, g * inner if rng.random() < 0.97 else g * inner + 1), real, special)
    w = tensor(
        rng,
        (g * outer if rng.random() < 0.97 else g * outer + 1, inner, *kernel)
        if rng.random() < 0.98
        else (outer, inner, 3),
        real,
    )
    b = tensor(rng, (w.shape[0] if rng.random() < 0.97 else w.shape[0] + 1,), real) if rng.random() < 0.5 else None
    tensors = [t if t is None else t.to(dtype) for t in (x, w, b)]
    if rng.random() < 0.02:
        tensors[rng.randrange(2)] = tensors[0].real.to(torch.float32 if dtype != torch.float32 else torch.float64)  # pyright: ignore[reportOptionalMemberAccess]
    args = (stride, padding, dilation, groups)
    options = dict(zip(("stride", "padding", "dilation", "groups"), args, strict=True))
    keyword = rng.random() < 0.5

    def make(ns: Namespace) -> Observed:
        x, w, b = leaves = [leaf(t) for t in tensors]
        return observed(ns.conv2d(x, w, b, **options) if keyword else ns.conv2d(x, w, b, *args), leaves)

    terms = max(inner * kernel[0] * kernel[1], x.numel() // max(1, g * inner), outer * kernel[0] * kernel[1])
    text = f"conv2d{tuple(x.shape)} {tuple(w.shape)} bias={b is not None} {args} {dtype}"
    return Call(text, make, terms, eps=coarsest(*tensors))


def observed(output: Any, inputs: list[Any], *, twice: bool = True, layer: nn.Module | None = None) -> Observed:
    """A result with its derivatives in the inputs and, of a layer, in the parameters; also the layer's text."""
    parts = dict(enumerate(output)) if isinstance(output, tuple) else {0: output}
    wanted = {} if layer is None else dict(layer.named_parameters())
    wanted |= {f"input {i}": x for i, x in enumerate(inputs)}
    derivatives = differentiate({str(i): part for i, part in parts.items()}, wanted, 1, twice=twice)
    return Observed({} if layer is None else {"repr": repr(layer)}, {"output": output}, derivatives)


def layer_call(text: str, build: Callable[[Namespace], nn.Module], x: Tensor, terms: int) -> Call:
    """A layer: its text, state dict, drawn parameters, and its result with derivatives in input and parameters."""

    def make(ns: Namespace) -> Observed:
        seed_all(7)
        layer = build(ns).to(x.dtype if x.is_floating_point() else torch.float32)
        state = {key: value.detach().clone() for key, value in layer.state_dict().items()}
        a = leaf(x)
        seen = observed(layer(a), [a], layer=layer)
        seen.exact["state"] = state
        return seen

    return Call(text, make, terms, eps=coarsest(x))


def conv2d_layer(rng: random.Random) -> Call:
    groups = rng.choices([1, 2, 3, 0], (6, 3, 2, 0.1))[0]
    g = max(1, groups)
    c, o = g * rng.randint(1, 3), g * rng.randint(1, 3) + (rng.random() < 0.02)
    kernel, stride, padding, dilation = conv_options(rng)
    kernel = kernel if rng.random() < 0.6 else kernel[0]
    mode = rng.choices(["zeros", "reflect", "replicate", "circular", "nothing"], (5, 2, 2, 2, 0.2))[0]
    if mode != "zeros":  # PyTorch's convolution accepts single-element tuples, but computes a wrong padding with them
        padding, dilation = (v[0] if isinstance(v, (tuple, list)) and len(v) == 1 else v for v in (padding, dilation))
    dtype = float_dtype(rng)
    x = tensor(rng, plane(rng, c if rng.random() < 0.97 else c + 1, 4), dtype)
    if mode != "zeros" and x.numel() == 0:
        return conv2d_layer(rng)  # PyTorch checks less there
    args = (c, o, kernel, stride, padding, dilation, groups, rng.random() < 0.7, mode)
    terms = max(c * 16, x.numel() // c, o * 16)
    return layer_call(f"Conv2d{args} on {tuple(x.shape)} {dtype}", lambda ns: ns.Conv2d(*args), x, terms)


def pool_options(rng: random.Random) -> tuple[Any, Any, Any, bool]:
    kernel = size2(rng, 1, 4)
    stride = None if rng.random() < 0.4 else size2(rng, 1, 4)
    small = (
        min(kernel)
        if isinstance(kernel, (tuple, list)) and all(isinstance(k, int) for k in kernel)
        else kernel
        if isinstance(kernel, int)
        else 2
    )
    padding = size2(rng, 0, max(0, small // 2), bad=0.02) if rng.random() < 0.6 else 0
    if rng.random() < 0.03:
        padding = 3
    return kernel, stride, padding, rng.random() < 0.4


def max_pool2d(rng: random.Random) -> Call:
    kernel, stride, padding, ceil = pool_options(rng)
    dilation = size2(rng, 1, 3) if rng.random() < 0.4 else 1
    indices = rng.random() < 0.5
    dtype = seldom(
        rng, 0.1, lambda: rng.choice([torch.int64, torch.int32, torch.uint8, torch.bool]), lambda: float_dtype(rng)
    )
    x = tensor(rng, plane(rng, rng.randint(1, 3)), dtype, 0.3 if rng.random() < 0.3 else 0.0, ties=rng.random() < 0.4)
    if unreached(x, kernel, stride, padding, dilation, ceil):
        return max_pool2d(rng)
    if dtype == torch.uint8:  # PyTorch's channels_last kernel refuses bytes of more than 255 numbers an image
        x = x.contiguous()
    args = (kernel, stride, padding, dilation, ceil if rng.random() < 0.99 else 1, indices)
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    keyword = rng.random() < 0.5

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        options = dict(zip(names, args, strict=True))
        return observed(ns.max_pool2d(a, **options) if keyword else ns.max_pool2d(a, *args), [a])

    return Call(f"max_pool2d{tuple(x.shape)}{x.stride()} {args} {dtype}", make, 16)


def unreached(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> bool:
    """Whether some window has no pixel at all, where PyTorch's index lies outside the image."""
    try:
        pairs = [
            v if isinstance(v, (tuple, list)) else (v, v)
            for v in (kernel, kernel if stride is None else stride, padding, dilation)
        ]
        (k, s, p, d) = [(v[0], v[-1]) for v in pairs]
        out = pool2d_output_size(tuple(x.shape[-2:]), k, s, p, d, ceil)
    except (ValueError, TypeError, IndexError):
        return False
    if x.dim() < 2:
        return False
    return any(
        not any(0 <= o * s[a] - p[a] + i * d[a] < x.shape[-2 + a] for i in range(k[a]))
        for a in (0, 1)
        for o in range(out[a])
    )


def avg_pool2d(rng: random.Random) -> Call:
    kernel, stride, padding, ceil = pool_options(rng)
    dtype = seldom(rng, 0.1, lambda: rng.choice([torch.int64, torch.int32, torch.bool]), lambda: float_dtype(rng))
    x = tensor(rng, plane(rng, rng.randint(1, 3)), dtype, 0.3 if rng.random() < 0.15 else 0.0)
    args = (
        kernel,
        stride,
        padding,
        ceil,
        rng.random() < 0.5,
        rng.choices([None, 3, -2, 0, 1.5], (6, 2, 1, 0.2, 0.2))[0],
    )
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    keyword = rng.random() < 0.5

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        options = dict(zip(names, args, strict=True))
        return observed(ns.avg_pool2d(a, **options) if keyword else ns.avg_pool2d(a, *args), [a])

    return Call(f"avg_pool2d{tuple(x.shape)} {args} {dtype}", make, 16)


def adaptive_avg_pool2d(rng: random.Random) -> Call:
    def one() -> int | None:
        return rng.choices([rng.randint(1, 9), None, 0, -1], (10, 2, 0.5, 0.3))[0]

    out = one() if rng.random() < 0.4 else (one(), one())
    if rng.random() < 0.03 or out is None:
        out = rng.choice([None, (2,), (1, 2, 3), 2.0, "2", True, (2.0, 1)])
    dtype = seldom(rng, 0.05, lambda: torch.int64, lambda: float_dtype(rng))
    x = tensor(rng, plane(rng, rng.randint(1, 3), 1, 12), dtype, 0.3 if rng.random() < 0.15 else 0.0)
    one_window = out in (1, (1, 1)) and (x.dim() not in (3, 4) or x.numel() == 0)
    no_window = 0 in (*x.shape, out, *(out if isinstance(out, tuple) else ())) and not dtype.is_floating_point
    if one_window or no_window:
        return adaptive_avg_pool2d(rng)  # PyTorch has a shortcut for one window and for no window, with fewer checks

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        return observed(ns.adaptive_avg_pool2d(a, out), [a])

    return Call(f"adaptive_avg_pool2d{tuple(x.shape)} {out!r} {dtype}", make, 144)


def pooling_layer(rng: random.Random) -> Call:
    kernel, stride, padding, ceil = pool_options(rng)
    x = tensor(rng, plane(rng, 2), float_dtype(rng))
    kind = rng.choice(["MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"])
    if kind == "MaxPool2d":
        args = (kernel, stride, padding, 1, rng.random() < 0.3, ceil)
    elif kind == "AvgPool2d":
        args = (kernel, stride, padding, ceil, rng.random() < 0.5, rng.choice([None, 3]))
    else:
        args = (rng.choice([1, 3, (2, None), (None, 4), (5, 2)] if x.dim() in (3, 4) and x.numel() else [3]),)
    return layer_call(f"{kind}{args} on {tuple(x.shape)} {x.dtype}", lambda ns: getattr(ns, kind)(*args), x, 16)


def any_shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(0 if rng.random() < 0.05 else 1, 5) for _ in range(rng.randint(0, 4)))


def activation(rng: random.Random) -> Call:
    name = rng.choice(["relu", "leaky_relu", "sigmoid", "tanh"])
    dtype = seldom(
        rng, 0.15, lambda: rng.choice([torch.int64, torch.int32, torch.uint8, torch.bool]), lambda: float_dtype(rng)
    )
    x = tensor(rng, any_shape(rng), dtype, 0.5 if rng.random() < 0.4 else 0.0)
    if dtype.is_floating_point:
        x = x * rng.choice([1, 1, 1e-3, 10, 1e4])
    args: tuple[Any, ...] = ()
    if name == "leaky_relu":
        args = (rng.choice([0.01, 0.2, 1, -0.5, 0.0, 2.5, "a"] if rng.random() < 0.1 else [0.01, 0.2]),)
    inplace = name in ("relu", "leaky_relu") and rng.random() < 0.3
    options = {"inplace": True} if inplace else {}
    as_layer = rng.random() < 0.3
    if inplace and args and not isinstance(args[0], str) and args[0] < 0:
        return activation(rng)  # PyTorch cannot differentiate this and raises an error only in backward

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        given = a * 1 if inplace else a
        layer = getattr(ns, LAYERS[name])(*args, **options) if as_layer else None
        y = layer(given) if layer else getattr(ns, name)(given, *args, **options)
        seen = observed(y, [a], layer=layer)
        seen.exact["in place"] = inplace and y is given
        return seen

    text = f"{name}{tuple(x.shape)} {args} inplace={inplace} layer={as_layer} {dtype}"
    return Call(text, make, 8)


LAYERS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
}


def softmax(rng: random.Random) -> Call:
    name = rng.choice(["softmax", "log_softmax"])
    dtype = seldom(rng, 0.1, lambda: torch.int64, lambda: float_dtype(rng))
    x = tensor(rng, any_shape(rng), dtype, 0.3 if rng.random() < 0.3 else 0.0)
    if dtype.is_floating_point:
        x = x * rng.choice([1, 1, 10, 1e3])
    dim = rng.choices(
        [None, rng.randint(-x.dim(), max(0, x.dim() - 1)), 4, -5, 1.0, True], (1, 10, 0.3, 0.3, 0.1, 0.1)
    )[0]
    cast = rng.choices([None, torch.float64, torch.float32, torch.int64], (6, 2, 1, 0.3))[0]
    as_layer = rng.random() < 0.3
    if x.numel() == 0 and not (dtype if cast is None else cast).is_floating_point:
        return softmax(rng)  # PyTorch does not check the dtype of empty tensors

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        layer = getattr(ns, LAYERS[name])(dim) if as_layer else None
        return observed(layer(a) if layer else getattr(ns, name)(a, dim, dtype=cast), [a], layer=layer)

    # The argument of each exponential is a rounded difference: 16 times the roundings of the sum.
    text = f"{name}{tuple(x.shape)} dim={dim} dtype={cast} layer={as_layer} {dtype}"
    narrow = cast is not None and cast.is_floating_point
    return Call(text, make, 256, eps=max(coarsest(x), torch.finfo(cast).eps if narrow else 0.0), warns=True)  # pyright: ignore[reportArgumentType]


def linear(rng: random.Random) -> Call:
    i, o = rng.randint(0 if rng.random() < 0.1 else 1, 6), rng.randint(0 if rng.random() < 0.1 else 1, 6)
    dtype = seldom(rng, 0.1, lambda: rng.choice([torch.int64, torch.bool, torch.complex128]), lambda: float_dtype(rng))
    real = torch.float64 if dtype.is_complex else dtype
    lead = any_shape(rng)[:3]
    x = tensor(rng, (*lead, i if rng.random() < 0.97 else i + 1), real)
    if rng.random() < 0.02:
        x = tensor(rng, (), real)
    w = tensor(rng, (o, i) if rng.random() < 0.95 else (i,), real)
    if dtype == torch.bool and 0 in (*x.shape, *w.shape):
        return linear(rng)  # PyTorch has no bool matrix product, except an empty one
    b = None
    if w.dim() == 2 and rng.random() < 0.6:
        b = tensor(rng, rng.choices([(o,), (1,), (), (o + 1,)], (8, 1, 1, 0.3))[0], real)
    tensors = [t if t is None else t.to(dtype) for t in (x, w, b)]

    def make(ns: Namespace) -> Observed:
        leaves = [leaf(t) for t in tensors]
        return observed(ns.linear(*leaves), leaves)

    shapes = [None if t is None else tuple(t.shape) for t in tensors]
    return Call(f"linear {shapes} {dtype}", make, max(8, x.numel()), eps=coarsest(*tensors))


def linear_layer(rng: random.Random) -> Call:
    i, o = rng.randint(1, 6), rng.randint(1, 6)
    x = tensor(rng, (*any_shape(rng)[:3], i if rng.random() < 0.97 else i + 1), float_dtype(rng))
    args = (i, o, rng.random() < 0.7)
    return layer_call(f"Linear{args} on {tuple(x.shape)} {x.dtype}", lambda ns: ns.Linear(*args), x, max(8, x.numel()))


def flatten(rng: random.Random) -> Call:
    x = tensor(rng, any_shape(rng), rng.choice([torch.float64, torch.int64, torch.float32]))
    args = tuple(rng.choices([rng.randint(-5, 4), 1.0, None], (30, 1, 1))[0] for _ in range(rng.randint(0, 2)))
    as_layer = rng.random() < 0.3

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        layer = ns.Flatten(*args) if as_layer else None
        y = layer(a) if layer else ns.flatten(a, *args)
        seen = observed(y, [a], layer=layer)
        seen.exact |= {"same tensor": y is a, "same memory": y.data_ptr() == a.data_ptr()}
        return seen

    return Call(f"flatten{tuple(x.shape)}{x.stride()} {args} layer={as_layer}", make)


def sequential(rng: random.Random) -> Call:
    """A random program over a Sequential; every step is compared by its text, its names and its error or none."""
    steps = []
    for _ in range(rng.randint(1, 8)):
        kind = rng.choice(
            [
                "append",
                "extend",
                "insert",
                "del",
                "set",
                "slice",
                "add",
                "iadd",
                "mul",
                "imul",
                "rmul",
                "pop",
                "get",
                "delslice",
                "named",
            ]
        )
        steps.append((kind, rng.randint(-4, 4), rng.randint(-4, 5), rng.randint(0, 9)))
    named, start = rng.random() < 0.3, rng.randint(0, 3)
    x = tensor(rng, (2, 3), torch.float64)

    def make(ns: Namespace) -> Observed:
        seed_all(3)
        kinds = [
            lambda: ns.Linear(3, 3, dtype=torch.float64),
            ns.ReLU,
            ns.Tanh,
            ns.Flatten,
        ]
        layers = [kinds[i % 4]() for i in range(start)]
        s = (
            ns.Sequential(collections.OrderedDict((f"layer{i}", layer) for i, layer in enumerate(layers)))
            if named
            else ns.Sequential(*layers)
        )
        log: list[Any] = [repr(s)]
        for kind, a, b, c in steps:
            new = kinds[c % 4]()
            if kind in ("insert", "imul") and not all(name.isdigit() for name, _ in s.named_children()):
                continue  # PyTorch looks for "0", "1", … there and fails on other names
            try:
                match kind:
                    case "append":
                        log.append(s.append(new) is s)
                    case "extend":
                        log.append(s.extend([new, kinds[b % 4]()]) is s)
                    case "insert":
                        log.append(s.insert(a, new if c else "x") is s)
                    case "del":
                        del s[a]
                    case "set":
                        s[a] = new
                    case "slice":
                        log.append(repr(s[a:b]))
                    case "add":
                        s = s + (ns.Sequential(new) if c else [new])
                    case "iadd":
                        s += ns.Sequential(new, kinds[b % 4]()) if c else 3
                    case "mul":
                        s = s * (a if c else 1.5)
                    case "rmul":
                        s = a * s
                    case "imul":
                        s *= min(a, 2)
                    case "pop":
                        log.append(repr(s.pop(a)))
                    case "get":
                        log.append(repr(s[a]))
                    case "delslice":
                        del s[a:b]
                    case "named":
                        log += [name for name, _ in s.named_children()] + [
                            len(s),
                            [type(m).__name__ for m in s],
                            sorted(s.state_dict()),
                            [d for d in dir(s) if d.isdigit()],
                        ]
            except Exception:
                log.append("raised")
            if len(s) > 40:
                break
            log.append(repr(s))
        a = leaf(x)
        seen = observed(s(a), [a], twice=False, layer=s)
        seen.exact["log"] = log
        return seen

    return Call(f"Sequential {steps} start={start} named={named}", make, 64)


COMPONENTS: dict[str, Draw] = {
    "conv2d": conv2d,
    "Conv2d": conv2d_layer,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "pooling_layers": pooling_layer,
    "activations": activation,
    "softmax": softmax,
    "linear": linear,
    "Linear": linear_layer,
    "flatten": flatten,
    "Sequential": sequential,
}
