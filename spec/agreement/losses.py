"""Random calls of losses, normalization, dropout, embedding and optimizers.

Optimizers and dropout draw and move the same numbers in the same order: they must agree bit for bit.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from spec.agreement.comparison import (
    REFERENCE,
    TORCH,
    Call,
    Draw,
    Namespace,
    Observed,
    coarsest,
    differentiate,
    leaf,
)
from spec.support.strategies import seed_all


def seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(40))


def draw(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=seeded(rng), dtype=torch.float64) * size).to(dtype)


def poison(rng: random.Random, x: Tensor) -> Tensor:
    """One to three elements become NaN or ±inf."""
    flat = x.clone().reshape(-1)
    for _ in range(rng.randint(1, 3)):
        if len(flat):
            flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), float("-inf")])
    return flat.reshape(x.shape)


def layout(rng: random.Random, rank: int) -> Callable[[Tensor], Tensor]:
    """A copy with other strides: dimensions in another order in memory, or every other element of a larger tensor."""
    order = list(range(rank))
    rng.shuffle(order)
    back = [order.index(i) for i in range(rank)]
    step = rng.random() < 0.3 and rank > 0
    keep = rng.random() < 0.4

    def apply(x: Tensor) -> Tensor:
        if keep or x.dim() != rank:
            return x.clone()
        y = x.permute(order).contiguous().permute(back)
        if step:
            wide = torch.stack([y, y], -1)
            y = wide[..., 0]
        return y

    return apply


def strided(ns: Namespace, place: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Other strides for the reference only: PyTorch's batch norm has wrong gradients on the CPU where an input that is
    channels-last meets a gradient that is not and both could pass for it (a dimension of size 1; torch 2.14.1)."""
    return place(x) if ns is REFERENCE else x.clone()


def dtype_of(rng: random.Random) -> torch.dtype:
    return rng.choices([torch.float32, torch.float64, torch.float16, torch.bfloat16], [6, 3, 1, 1])[0]


def reduction_of(rng: random.Random) -> str:
    return rng.choice(["mean", "sum", "none"])


def shape_of(rng: random.Random, low: int = 0, high: int = 4) -> list[int]:
    return [
        rng.choice([0, 1, 2, 3, 4, 5]) if rng.random() < 0.3 else rng.randint(1, 5)
        for _ in range(rng.randint(low, high))
    ]


def elementwise(name: str, layer: str) -> Draw:
    def random_call(rng: random.Random) -> Call:
        shape, reduction, dtype = shape_of(rng), reduction_of(rng), dtype_of(rng)
        x = draw(rng, *shape, dtype=dtype, size=rng.choice([1, 1, 30]))
        other = list(shape)
        if rng.random() < 0.2:  # broadcast
            other = [1 if rng.random() < 0.5 else n for n in other][rng.randint(0, len(other)) :]
        if rng.random() < 0.05:
            other = [*other, 7]
        y = draw(rng, *other, dtype=dtype if rng.random() < 0.9 else torch.float64)
        if rng.random() < 0.2 and other == shape:
            y = torch.where(draw(rng, *shape) > 0, x.to(y.dtype), y)  # ties: the gradient at 0
        infinite = rng.random() < 0.1
        if infinite:
            x = poison(rng, x)
        weight = None
        if rng.random() < 0.2:
            weight = draw(rng, *(shape if rng.random() < 0.9 else [*shape, 1]), dtype=dtype).abs()
        if rng.random() < 0.05:
            reduction = rng.choice(["average", "Mean", ""])
        as_layer = weight is None and rng.random() < 0.4
        place, seed = layout(rng, len(shape)), rng.getrandbits(30)
        twice = dtype == torch.float64 and not infinite

        def make(ns: Namespace) -> Observed:
            a, b = leaf(x), leaf(y)
            options = {} if reduction == "mean" and seed % 2 else {"reduction": reduction}
            seen = Observed()
            if as_layer:
                module = getattr(ns, layer)(**options)
                seen.exact |= {"repr": repr(module), "keys": list(module.state_dict())}
                output = module(place(a), b)
            else:
                output = getattr(ns, name)(place(a), b, **options, **({} if weight is None else {"weight": weight}))
            seen.close = {"output": output}
            seen.derivatives = differentiate(seen.close, {"input": a, "target": b}, seed, twice=twice)
            return seen

        n = max(1, x.numel(), y.numel())
        size = (x.double().nan_to_num(0, 0, 0).abs().max() if x.numel() else 0) + (
            y.double().abs().max() if y.numel() else 0
        )
        scale = float(max(1, size) ** 2) * (n if reduction == "sum" else 1)
        spread = 1.0 if weight is None or not weight.numel() else max(1.0, n / max(1e-3, float(weight.double().sum())))
        text = f"{name} {shape} {other} {reduction} {dtype} weight={weight is not None}"
        return Call(text, make, 2 * n + 8, scale * spread, coarsest(x, y), warns=True)

    return random_call


def classify(name: str, layer: str) -> Draw:
    cross = name == "cross_entropy"

    def random_call(rng: random.Random) -> Call:
        classes, dtype, reduction = rng.randint(1, 8), dtype_of(rng), reduction_of(rng)
        batch = [] if rng.random() < 0.15 else [rng.choice([0, 1, 2, 3, 5, 8])]
        positions = [] if not batch or rng.random() < 0.5 else shape_of(rng, 1, 3)
        shape = [*batch, classes, *positions]
        size = rng.choice([1, 1, 1, 10, 1e4])
        x = draw(rng, *shape, dtype=torch.float64, size=size)
        if dtype == torch.float16:
            x = x.clamp(-2e3, 2e3)  # so that the sum over the classes does not overflow
        if not cross:
            x = -x.abs()
        x = x.to(dtype)
        probabilities = cross and rng.random() < 0.3
        places = [*batch, *positions]
        if probabilities:
            y = draw(rng, *shape, dtype=dtype).abs()
            if rng.random() < 0.8:
                y = torch.softmax(draw(rng, *shape, dtype=torch.float64), 1 if batch else 0).to(dtype)
        else:
            y = torch.randint(0, classes, places, generator=seeded(rng))
        ignore = rng.choice([-100, -100, -1, 0, rng.randrange(classes), 255])
        if not probabilities and y.numel() and rng.random() < 0.5:
            share = rng.choice([0.3, 1.0])
            y = torch.where(torch.rand(y.shape, generator=seeded(rng)) < share, ignore, y)
        if probabilities and rng.random() < 0.9:
            ignore = -100
        smoothing = rng.choice([0.0, 0.0, 0.1, 0.5, 1.0, 1, 0]) if cross else 0.0
        weight = draw(rng, classes, dtype=dtype).abs() if rng.random() < 0.4 else None
        if weight is not None and rng.random() < 0.2:
            weight = weight * (draw(rng, classes) > 0).to(dtype)
        infinite = rng.random() < 0.1
        if infinite:
            x = poison(rng, x)
        broken = rng.random()
        if broken < 0.02 and batch:  # without a batch PyTorch also accepts a target [1], which is undocumented
            y = y[..., None]
        elif broken < 0.04:
            y = y.to(torch.int32)
        elif broken < 0.06 and not probabilities and y.numel():
            y = y.clone()
            y.view(-1)[rng.randrange(y.numel())] = rng.choice([classes, classes + 5, -7])
        elif broken < 0.08:
            weight = torch.ones(classes + 1, dtype=dtype)
        elif broken < 0.09:
            weight = torch.ones(classes, dtype=torch.float64 if dtype == torch.float32 else torch.float32)
        elif broken < 0.10:
            reduction = "average"
        elif broken < 0.11 and cross:
            smoothing = 1.5
        elif broken < 0.12 and x.numel():
            x = x.to(torch.int64).reshape(x.shape)
        elif broken < 0.13 and not positions and not smoothing and (probabilities or bool((y >= 0).all())):
            y = y.to(torch.uint8)
        as_layer, seed = rng.random() < 0.4, rng.getrandbits(30)
        place, place_target = layout(rng, len(shape)), layout(rng, y.dim())
        if not cross and positions:
            place = torch.clone  # PyTorch's backward refuses other strides there: "grad_input must be contiguous"
        twice = dtype == torch.float64 and not infinite

        def make(ns: Namespace) -> Observed:
            a = leaf(x)
            b = leaf(y) if probabilities else y
            options: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore}
            if cross and (smoothing or seed % 2):
                options["label_smoothing"] = smoothing
            if ignore == -100 and seed % 3 == 0:
                del options["ignore_index"]
            seen = Observed()
            if as_layer:
                module = getattr(ns, layer)(weight, **options)
                seen.exact |= {"repr": repr(module), "keys": list(module.state_dict())}
                seen.exact["attributes"] = (
                    module.reduction,
                    module.ignore_index,
                    getattr(module, "label_smoothing", None),
                )
                output = module(place(a), place_target(b))
            else:
                output = getattr(ns, name)(place(a), place_target(b), weight, **options)
            seen.close = {"output": output}
            seen.derivatives = differentiate(seen.close, {"input": a, "target": b}, seed, twice=twice)
            return seen

        n = max(1, y.numel())
        finite = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 1.0
        heaviest = 1.0 if weight is None or not weight.numel() else float(weight.double().max())
        total = 1.0
        if reduction == "mean" and weight is not None and not probabilities and y.numel() and len(weight) == classes:
            kept = y.long()[(y != ignore) & (y >= 0) & (y < classes)]
            total = max(1e-30, float(weight.double()[kept].sum()) / max(1, len(kept)))
        scale = max(1.0, finite) * max(1.0, heaviest / total) * max(1.0, heaviest) * (n if reduction == "sum" else 1)
        if probabilities:
            scale *= classes * max(1.0, float(y.double().max()) if y.numel() else 1.0)
        text = f"{name} {shape} {reduction} {dtype} {y.dtype} probabilities={probabilities} ignore_index={ignore}"
        text += f" label_smoothing={smoothing} weight={weight}"
        # The second derivative adds up products of two such numbers.
        roundings, gains = 4 * (n + classes + 8), {"second gradient": scale}
        # A weight of 0 for a score beyond float16 gives 0 · inf or 0, depending on the order of the products.
        overflows = ("output", "gradient") if dtype == torch.float16 and weight is not None else ()
        return Call(text, make, roundings, scale, coarsest(x, y, weight), gains, overflows, warns=True)

    return random_call


def parameter_dtype(rng: random.Random, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) and rng.random() < 0.5 else dtype


def batch_norm(rng: random.Random) -> Call:
    dtype = dtype_of(rng)
    held = parameter_dtype(rng, dtype)
    channels, training = rng.randint(1, 5), rng.random() < 0.6
    shape = [rng.choice([0, 1, 2, 3, 4]), channels, *[rng.randint(1, 4) for _ in range(rng.randint(0, 3))]]
    x = draw(rng, *shape, dtype=torch.float64, size=rng.choice([1, 5])) + rng.choice([0, 0, 3])
    x = x.to(dtype)
    constant = rng.random() < 0.1
    if constant:
        x = torch.full_like(x, 2.0)
    infinite = rng.random() < 0.1
    if infinite:
        x = poison(rng, x)
    mean, var = draw(rng, channels, dtype=held), draw(rng, channels, dtype=held).abs() + 0.1
    weight = draw(rng, channels, dtype=held) if rng.random() < 0.7 else None
    bias = draw(rng, channels, dtype=held) if rng.random() < 0.7 else None
    running = rng.random() < 0.7 or not (x.numel() or training)  # PyTorch checks nothing if the input is empty
    momentum, eps = rng.choice([0.1, 0.0, 1.0, 0.37, 1]), rng.choice([1e-5, 1e-3, 0.1])
    broken = rng.random() if x.numel() else 1.0
    if broken < 0.02:
        mean = draw(rng, channels + 1, dtype=held)
    elif broken < 0.04:
        weight = draw(rng, channels + 1, dtype=held)
    elif broken < 0.06:
        eps = rng.choice([-1.0, 0.0])
    elif broken < 0.08:
        bias = draw(rng, channels, dtype=torch.float64 if held != torch.float64 else torch.float32)
    elif broken < 0.09:
        x = x.nan_to_num(0, 0, 0).long()
    place, seed = layout(rng, len(shape)), rng.getrandbits(30)
    only_one = 0.10 < broken < 0.12

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        leaves = {"input": a}
        leaves |= {n: leaf(t) for n, t in (("weight", weight), ("bias", bias)) if t is not None}
        m, v = (mean.clone(), var.clone()) if running else (None, None)
        output = ns.batch_norm(
            strided(ns, place, a),
            m,
            None if only_one else v,
            leaves.get("weight"),
            leaves.get("bias"),
            training,
            momentum,
            eps,
        )
        twice = dtype == torch.float64 and not infinite and "weight" in leaves
        derivatives = differentiate({"output": output}, leaves, seed, twice=twice)
        return Observed(
            close={"output": output, "running_mean": m, "running_var": v},
            derivatives=derivatives,
        )

    n = max(1, x[:, :1].numel())
    top = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 1.0
    gain = (
        max(1.0, top)
        * max(1.0, float(weight.double().abs().max()) if weight is not None else 1.0)
        / min(1.0, max(eps, 1e-9) ** 0.5 if constant or n < 3 else 0.1)
    )
    grow = 1 / max(eps, 1e-9)
    text = f"batch_norm {shape} training={training} running={running} momentum={momentum} eps={eps} {dtype} {held}"
    return Call(
        f"{text} constant={constant}",
        make,
        2 * n + 10,
        gain,
        coarsest(x, mean),
        {
            "gradient of input": grow if n < 4 or constant else 10,
            "second gradient of input": grow**3 * gain**2,
            "second gradient of weight": grow**2 * gain**2,
            "second gradient of bias": grow**2 * gain**2,
            "running_var": max(1.0, top),
            "gradient of weight": n,
            "gradient of bias": n,
        },
        warns=True,
    )


def batch_norm_layer(rng: random.Random) -> Call:
    dtype, channels = dtype_of(rng), rng.randint(1, 4)
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["momentum"] = rng.choice([None, 0.3, 1.0, 0.0])
    for key in ("affine", "track_running_stats", "bias"):
        if rng.random() < 0.3:
            options[key] = rng.random() < 0.4
    if rng.random() < 0.3:
        options["eps"] = rng.choice([1e-3, 1e-2])
    steps = [rng.random() < 0.7 for _ in range(rng.randint(1, 4))]
    batches = [draw(rng, rng.randint(2, 4), channels, rng.randint(1, 4), rng.randint(1, 4), dtype=dtype) for _ in steps]
    if rng.random() < 0.05:
        batches[0] = batches[0].flatten(2)
    if rng.random() < 0.05:
        batches[-1] = batches[-1][:1, ..., :1, :1]
    if rng.random() < 0.05:
        batches[-1] = batches[-1][:0]
    memory = rng.choice([torch.contiguous_format, torch.channels_last])

    def make(ns: Namespace) -> Observed:
        module = ns.BatchNorm2d(channels, **options, dtype=dtype)
        seen = Observed({"repr": repr(module), "keys": list(module.state_dict())})
        derivatives: dict[str, Tensor] = {}
        for i, (training, x) in enumerate(zip(steps, batches, strict=True)):
            a = leaf(x)
            module.train(training)
            output = module(strided(ns, lambda t: t.contiguous(memory_format=memory) if t.dim() == 4 else t, a))
            inputs = {f"{key} {i}": value for key, value in {"input": a, **dict(module.named_parameters())}.items()}
            found = differentiate({"output": output}, inputs, i, twice=False)
            if isinstance(found, RuntimeError):
                raise found
            derivatives |= found
            seen.close[f"output {i}"] = output
        seen.derivatives = derivatives
        seen.close |= {f"state {key}": value.clone() for key, value in module.state_dict().items()}
        # the state dict is loaded by the other side and back
        other = TORCH.BatchNorm2d(channels, **options, dtype=dtype)
        other.load_state_dict(module.state_dict())
        module.load_state_dict(other.state_dict())
        return seen

    gains = {"gradient of input": 10 * options.get("eps", 1e-5) ** -0.5}
    text = f"BatchNorm2d {channels} {options} {steps} {[tuple(batch.shape) for batch in batches]} {dtype}"
    return Call(text, make, 150, 50.0, gains=gains, warns=True)


def layer_norm(rng: random.Random) -> Call:
    dtype = dtype_of(rng)
    held = parameter_dtype(rng, dtype)
    tail, head = [rng.randint(1, 5) for _ in range(rng.randint(1, 3))], shape_of(rng, 0, 2)
    x = (draw(rng, *head, *tail, dtype=torch.float64, size=rng.choice([1, 4])) + rng.choice([0, 0, 2])).to(dtype)
    infinite = rng.random() < 0.1
    if infinite:
        x = poison(rng, x)
    weight = draw(rng, *tail, dtype=held) if rng.random() < 0.7 else None
    bias = draw(rng, *tail, dtype=held) if rng.random() < 0.7 else None
    eps, as_layer = rng.choice([1e-5, 1e-3, 0.1]), rng.random() < 0.4
    normalized: Any = list(tail)
    if held != dtype and (weight is None or as_layer):
        held, bias = dtype, None  # PyTorch's backward detects mixed dtypes only with a weight
    broken = rng.random()
    if broken < 0.02:
        normalized = [*tail[:-1], tail[-1] + 1]
    elif broken < 0.04:
        weight = draw(rng, *tail, 2, dtype=held)
    elif broken < 0.05:
        normalized = []
    elif broken < 0.07:
        bias = draw(rng, *tail, dtype=torch.float64 if held != torch.float64 else torch.float32)
    elif broken < 0.08:
        x = x.nan_to_num(0, 0, 0).long()
    options = (
        {"elementwise_affine": rng.random() < 0.7, "bias": rng.random() < 0.7, "eps": eps} if rng.random() < 0.7 else {}
    )
    if as_layer and len(normalized) == 1 and rng.random() < 0.5:
        normalized = normalized[0]
    place, seed = layout(rng, x.dim()), rng.getrandbits(30)

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        seen = Observed()
        if as_layer:
            module = ns.LayerNorm(normalized, **options, dtype=held)
            seen.exact |= {"repr": repr(module), "normalized_shape": module.normalized_shape}
            seen.exact["state"] = {key: value.clone() for key, value in module.state_dict().items()}
            leaves = {"input": a} | dict(module.named_parameters())
            output = module(place(a))
        else:
            leaves = {"input": a} | {n: leaf(t) for n, t in (("weight", weight), ("bias", bias)) if t is not None}
            output = ns.layer_norm(place(a), normalized, leaves.get("weight"), leaves.get("bias"), eps)
        seen.close = {"output": output}
        twice = dtype == torch.float64 and not infinite and "weight" in leaves
        seen.derivatives = differentiate(seen.close, leaves, seed, twice=twice)
        return seen

    n, rows = max(1, torch.Size(tail).numel()), max(1, torch.Size(head).numel())
    top = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 1.0
    used = options.get("eps", 1e-5) if as_layer else eps
    gain = (
        max(1.0, top)
        * max(1.0, float(weight.double().abs().max()) if weight is not None else 1.0)
        * (used**-0.5 if n < 4 else 10)
    )
    grow = 1 / used
    text = f"layer_norm {head} {normalized} eps={eps} {dtype} {held} layer={as_layer} {options}"
    return Call(
        text,
        make,
        2 * n + 10,
        gain,
        coarsest(x, torch.empty(0, dtype=held)),
        {
            "gradient of input": grow if n < 4 else 10,
            "gradient of weight": rows,
            "gradient of bias": rows,
            "second gradient of input": grow**3 * gain**2,
            "second gradient of weight": grow**2 * gain**2,
            "second gradient of bias": grow**2 * gain**2,
        },
        warns=True,
    )


def dropout(rng: random.Random) -> Call:
    dtype, shape = dtype_of(rng), shape_of(rng)
    p, training, inplace = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0, 0, 1]), rng.random() < 0.8, rng.random() < 0.3
    if rng.random() < 0.05:
        p = rng.choice([-0.1, 1.1])
    x = draw(rng, *shape, dtype=dtype)
    if rng.random() < 0.1:
        x = poison(rng, x)
    if rng.random() < 0.05:
        x = x.nan_to_num(0, 0, 0).long()
    as_layer, place, seed = rng.random() < 0.5, layout(rng, len(shape)), rng.getrandbits(30)

    def make(ns: Namespace) -> Observed:
        a = leaf(x)
        given = place(a) + 0
        seed_all(seed)
        seen = Observed()
        if as_layer:
            module = ns.Dropout(p, inplace).train(training)
            seen.exact |= {"repr": repr(module), "keys": list(module.state_dict())}
            output = module(given)
        else:
            output = ns.dropout(given, p, training, inplace)
        seen.exact |= {"output": output.detach().clone(), "same": output is given, "given": given.detach().clone()}
        seen.exact["next random number"] = torch.rand(1)
        seen.derivatives = differentiate({"output": output}, {"input": a}, seed, twice=True)
        return seen

    return Call(f"dropout {shape} {p} training={training} inplace={inplace} {dtype}", make, warns=True)


def embedding(rng: random.Random) -> Call:
    dtype, rows, dim = dtype_of(rng), rng.randint(1, 8), rng.randint(1, 6)
    shape = shape_of(rng, 0, 3)
    words = torch.randint(0, rows, shape, generator=seeded(rng)).to(rng.choice([torch.int64, torch.int64, torch.int32]))
    weight = draw(rng, rows, dim, dtype=dtype, size=2)
    infinite = rng.random() < 0.1
    if infinite:
        weight = poison(rng, weight)
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["padding_idx"] = rng.randint(-rows, rows - 1)
    if rng.random() < 0.3:
        options |= {"max_norm": rng.choice([0.5, 1.0, 2, 3.0])}
    if rng.random() < 0.3:
        options |= {"norm_type": rng.choice([1.0, 2.0, 3.0, 0.5, float("inf"), 2])}
    if rng.random() < 0.3:
        options["scale_grad_by_freq"] = True
    broken = rng.random()
    if broken < 0.02:
        options["padding_idx"] = rng.choice([rows, -rows - 1])
    elif broken < 0.04 and words.numel():
        words = words.clone()
        words.view(-1)[rng.randrange(words.numel())] = rng.choice([rows, -1])
    elif broken < 0.06:
        words = words.to(torch.float32 if rng.random() < 0.5 else torch.int16)
    elif broken < 0.07:
        weight = weight[0]
    kind, seed = rng.choice(["function", "layer", "pretrained"]), rng.getrandbits(30)
    freeze = rng.random() < 0.5
    twice = dtype == torch.float64 and not options.get("scale_grad_by_freq") and not infinite

    def make(ns: Namespace) -> Observed:
        seen = Observed()
        seed_all(seed)
        if kind == "function":
            w = leaf(weight)
            output = ns.embedding(words, w, **options)
        else:
            if kind == "layer":
                module = ns.Embedding(rows, dim, **options, dtype=dtype)
            else:
                module = ns.Embedding.from_pretrained(weight.clone(), freeze=freeze, **options)
            w = module.weight
            seen.exact |= {"repr": repr(module), "keys": list(module.state_dict()), "drawn": w.detach().clone()}
            seen.exact["attributes"] = (
                module.padding_idx,
                module.max_norm,
                module.norm_type,
                module.scale_grad_by_freq,
                module.num_embeddings,
                w.requires_grad,
            )
            output = module(words)
        seen.close = {"output": output, "weight afterwards": w.detach().clone()}
        seen.derivatives = differentiate({"output": output}, {"weight": w}, seed, twice=twice)
        return seen

    text = f"embedding {rows}x{dim} {shape} {options} {kind} {dtype} {words.dtype}"
    return Call(text, make, 2 * max(1, words.numel()) + dim + 8, 20.0, warns=True)


def optimizer(name: str) -> Draw:
    def settings_of(rng: random.Random, part: bool) -> dict[str, Any]:
        chosen: dict[str, Any] = {}

        def maybe(key: str, *values: Any) -> None:
            if rng.random() < (0.25 if part else 0.5):
                chosen[key] = rng.choice(values)

        maybe(
            "lr",
            0.1,
            0.01,
            1e-3,
            1,
            0.0,
            torch.tensor(0.05),
            torch.tensor([0.02]),
            torch.tensor(0.03, dtype=torch.float64),
        )
        maybe("weight_decay", 0, 0.01, 0.5)
        maybe("maximize", True, False)
        if name == "SGD":
            maybe("momentum", 0, 0.9, 0.5, 1)
            maybe("dampening", 0, 0.3)
            maybe("nesterov", True, False)
        else:
            maybe("betas", (0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.0))
            maybe("eps", 1e-8, 1e-3, 0.0)
            if not part:
                maybe("amsgrad", True, False)
        return chosen

    def random_call(rng: random.Random) -> Call:
        common = settings_of(rng, False)
        if common.get("nesterov") and rng.random() < 0.8:
            common |= {"momentum": 0.9, "dampening": 0}
        if rng.random() < 0.1:
            bad = [("lr", -0.1), ("weight_decay", -1), ("lr", torch.tensor([0.1, 0.2]))]
            bad += (
                [("momentum", -0.1)]
                if name == "SGD"
                else [("betas", (1.0, 0.9)), ("betas", (0.9, -0.1)), ("eps", -1.0), ("betas", (0, 0.9))]
            )
            key, value = rng.choice(bad)
            common[key] = value
        if name == "Adam" and rng.random() < 0.1:
            common["decoupled_weight_decay"] = True
        dtype = dtype_of(rng)
        shapes = [shape_of(rng, 0, 3) for _ in range(rng.randint(1, 4))]
        start = [draw(rng, *shape, dtype=dtype) for shape in shapes]
        grouped = [settings_of(rng, True) for _ in start] if rng.random() < 0.4 else None
        late = draw(rng, 3, dtype=dtype) if rng.random() < 0.2 else None
        late_settings = settings_of(rng, True)
        gradients = [
            [draw(rng, *t.shape, dtype=dtype) if rng.random() < 0.9 else None for t in start] for _ in range(20)
        ]
        if rng.random() < 0.05:
            gradients[7] = [None if g is None else poison(rng, g) for g in gradients[7]]
        swap = rng.choice([None, 5, 12])  # continue in a new optimizer of the other side, and return 3 steps later
        change = rng.choice([None, 3, 10])
        to_none, use_closure = rng.random() < 0.7, rng.random() < 0.3

        def make(ns: Namespace) -> Observed:
            params = [leaf(t) for t in start]

            def build(space: Any) -> Any:
                if grouped is None:
                    given: Any = iter(params[: len(start)]) if to_none else params[: len(start)]
                else:
                    given = [{"params": [p], **s} for p, s in zip(params, grouped, strict=False)]
                made = getattr(space, name)(given, **common)
                if len(params) > len(start):
                    made.add_param_group({"params": params[-1], **late_settings})
                return made

            current = build(ns)
            results: dict[str, Any] = {
                "repr": repr(current),
                "defaults": str(sorted(current.defaults.items(), key=str)),
            }
            for t, step_gradients in enumerate(gradients):
                if late is not None and t == 6:
                    params.append(leaf(late))
                    current.add_param_group({"params": params[-1], **late_settings})
                for p, g in zip(params, step_gradients, strict=False):
                    p.grad = None if g is None else g.clone()
                if swap is not None and t in (swap, swap + 3):
                    other = TORCH if (ns is REFERENCE) == (t == swap) else REFERENCE
                    state = current.state_dict()
                    results[f"state at {t}"] = flat(state)
                    current = build(other)
                    current.load_state_dict(deepcopy(state))
                if change == t:
                    for group in current.param_groups:
                        group["lr"] = group["lr"] * 0.5
                if use_closure:
                    assert current.step(lambda: torch.tensor(1.0)) == 1.0
                else:
                    assert current.step() is None
                results |= {f"parameter {i} after {t}": p.detach().clone() for i, p in enumerate(params)}
            current.zero_grad(to_none)
            results["gradients"] = [None if p.grad is None else p.grad.clone() for p in params]
            results["final"] = flat(current.state_dict())
            results["text"] = repr(current)
            return Observed(exact=results)

        text = f"{name} {common} {dtype} {shapes} groups={grouped} swap={swap} change={change}"
        return Call(f"{text} late={late is not None}", make, warns=True)

    return random_call


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict with paths for keys."""
    if isinstance(state, dict):
        return {k: v for key in sorted(state, key=str) for k, v in flat(state[key], f"{prefix}/{key}").items()}
    if isinstance(state, list):
        return {k: v for i, item in enumerate(state) for k, v in flat(item, f"{prefix}/{i}").items()}
    return {prefix: state}


COMPONENTS: dict[str, Draw] = {
    "l1_loss": elementwise("l1_loss", "L1Loss"),
    "mse_loss": elementwise("mse_loss", "MSELoss"),
    "nll_loss": classify("nll_loss", "NLLLoss"),
    "cross_entropy": classify("cross_entropy", "CrossEntropyLoss"),
    "batch_norm": batch_norm,
    "BatchNorm2d": batch_norm_layer,
    "layer_norm": layer_norm,
    "dropout": dropout,
    "embedding": embedding,
    "SGD": optimizer("SGD"),
    "Adam": optimizer("Adam"),
    "AdamW": optimizer("AdamW"),
}
