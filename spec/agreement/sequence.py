"""Random calls of the recurrent layers and of attention.

About one call in six is made wrong on purpose.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from spec.agreement.comparison import Call, Draw, Namespace, Observed, differentiate, leaf
from spec.support.strategies import seed_all

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def tensor(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, kind: str = "normal") -> Tensor:
    """Random numbers of `shape` with random strides; `kind` extreme goes to ±1e4, nonfinite sprinkles NaN and ±inf."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "extreme":
        decades = 2 if dtype == torch.float16 else 4  # the products of larger numbers would overflow float16
        values = values.sign() * 10 ** (decades * torch.rand(shape, generator=generator, dtype=torch.float64))
    if kind == "nonfinite" and values.numel():
        for _ in range(rng.randint(1, 2)):
            values.view(-1)[rng.randrange(values.numel())] = rng.choice([math.nan, math.inf, -math.inf])
    return restride(rng, values.to(dtype))


def restride(rng: random.Random, values: Tensor) -> Tensor:
    """The same values in another memory layout."""
    layout = rng.choice(["contiguous", "transposed", "sliced", "offset"])
    if layout == "transposed" and values.ndim >= 2:
        a, b = rng.sample(range(values.ndim), 2)
        return values.transpose(a, b).contiguous().transpose(a, b)
    if layout == "sliced" and values.ndim:
        return torch.stack([values, torch.full_like(values, 7)], dim=-1)[..., 0]
    if layout == "offset" and values.ndim:
        return torch.cat([torch.full_like(values[:1], 7), values])[1:] if len(values) else values
    return values


def bool_mask(rng: random.Random, shape: tuple[int, ...], probability: float) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    return torch.rand(shape, generator=generator) < probability


def number_kind(rng: random.Random) -> str:
    return rng.choices(["normal", "extreme", "nonfinite"], [8, 1, 1])[0]


def module_facts(module: torch.nn.Module) -> dict[str, Any]:
    """The parts of a new module that must be equal bit for bit: its text, its public attributes, its parameters."""
    plain = (int, float, bool, str, type(None))
    attributes = {n: v for n, v in vars(module).items() if n[0] != "_" and type(v) in plain}
    attributes.pop("activation_relu_or_gelu", None)  # an internal attribute of PyTorch for its fast path
    state = {f"state_dict {name}": value.detach().clone() for name, value in module.state_dict().items()}
    return {
        "repr": repr(module),
        "attributes": dict(sorted(attributes.items())),
        "keys": list(module.state_dict()),
        **state,
    }


@contextmanager
def formulas(*, flash: bool) -> Iterator[None]:
    """Attention by PyTorch's formulas: without its inference kernels, and without the fused one unless `flash`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION] if flash else [SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def recurrent(rng: random.Random, component: str) -> Call:
    dtype = rng.choice(DTYPES)
    input_size, hidden_size, num_layers = rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 3)
    options: dict[str, Any] = {"num_layers": num_layers}
    for name in ("bias", "batch_first", "bidirectional"):
        if chance(rng, 0.5):
            options[name] = chance(rng, 0.5)
    if chance(rng, 0.4):
        options["dropout"] = rng.choice([0, 0.3, 0.5, 1, 1.0])
    if component == "RNN" and chance(rng, 0.6):
        options["nonlinearity"] = rng.choice(["tanh", "relu"])
    if component == "LSTM" and chance(rng, 0.3):
        options["proj_size"] = rng.randint(0, hidden_size - 1)
    if dtype != torch.float32 or chance(rng, 0.3):
        options["dtype"] = dtype

    layout = rng.choices(["batched", "unbatched", "packed"], [6, 2, 2])[0]
    kind = number_kind(rng)
    time_steps, batch = rng.randint(1, 6), rng.choice([0, 1, 2, 3, 4])
    directions = 2 if options.get("bidirectional") else 1
    features = options.get("proj_size") or hidden_size
    lengths: list[int] = []
    packed: Any = None
    if layout == "packed":
        lengths = [rng.randint(1, 5) for _ in range(max(batch, 1))]
        batch, sorted_already = len(lengths), chance(rng, 0.3)
        lengths = sorted(lengths, reverse=True) if sorted_already else lengths
        parts = [tensor(rng, (length, input_size), dtype, kind) for length in lengths]
        packed = pack_sequence(parts, enforce_sorted=sorted_already)
        data: Any = packed.data
    elif layout == "unbatched":
        data = tensor(rng, (time_steps, input_size), dtype, kind)
    else:
        shape = (batch, time_steps) if options.get("batch_first") else (time_steps, batch)
        data = tensor(rng, (*shape, input_size), dtype, kind)
    stack = num_layers * directions
    middle = () if layout == "unbatched" else (batch,)
    states: list[Any] | None = None
    if chance(rng, 0.5):
        widths = [features, hidden_size] if component == "LSTM" else [features]
        states = [tensor(rng, (stack, *middle, width), dtype, kind) for width in widths]

    wrong = ""
    sizes: list[Any] = [input_size, hidden_size]
    raw_states: Any = None
    if chance(rng, 0.17):
        choices = ["features", "dimensions", "dtype", "size 0", "size type", "dropout", "num_layers", "bias"]
        choices += ["no steps"] if layout != "packed" else []
        # PyTorch's LSTM does not check the states for a packed input, and ends in a segmentation fault.
        checked = states and not (component == "LSTM" and layout == "packed")
        choices += ["state shape", "state dtype", "state dimensions", "state kind"] if checked else []
        choices += ["nonlinearity"] if component == "RNN" else []
        choices += ["proj_size"]
        wrong = rng.choice(choices)
        if wrong == "features":
            data = tensor(rng, (*data.shape[:-1], input_size + rng.choice([1, 2])), dtype)
        elif wrong == "dimensions":
            data = data[None, None] if chance(rng, 0.5) else data.reshape(-1)
        elif wrong == "dtype":
            data = data.to(rng.choice([other for other in (*DTYPES, torch.int64) if other != dtype]))
        elif wrong == "no steps":
            data = data.narrow(1 if layout == "batched" and options.get("batch_first") else 0, 0, 0)
        elif wrong == "size 0":
            sizes[rng.randint(0, 1)] = rng.choice([0, -1])
        elif wrong == "size type":
            sizes[rng.randint(0, 1)] = rng.choice([2.0, "3", None])
        elif wrong == "dropout":
            options["dropout"] = rng.choice([-0.1, 1.5, "0.1", True, math.nan, None])
        elif wrong == "num_layers":
            options["num_layers"] = rng.choice([0, -1, 1.5])
        elif wrong == "bias":
            options[rng.choice(["bias", "batch_first"])] = rng.choice([1, None, "yes"])
        elif wrong == "nonlinearity":
            options["nonlinearity"] = rng.choice(["sigmoid", None, "TANH"])
        elif wrong == "proj_size":
            options["proj_size"] = rng.choice([-1, hidden_size, hidden_size + 1])
        elif wrong == "state shape" and states:
            i = rng.randrange(len(states))
            shape = list(states[i].shape)
            # If the states for a packed input have too many rows, PyTorch ignores the additional ones.
            shape[rng.choice([0, -1] if layout == "packed" else range(len(shape)))] += 1
            states[i] = tensor(rng, tuple(shape), dtype)
        elif wrong == "state dtype" and states:  # of h: PyTorch silently promotes a c of another dtype
            states[0] = states[0].to(torch.float64 if dtype != torch.float64 else torch.float32)
            if batch == 0:  # there is no product, so PyTorch does not detect it
                wrong, states = "", None
        elif wrong == "state dimensions" and states:
            states = [state[None] for state in states]
        elif wrong == "state kind" and states:
            raw_states = rng.choice([(states[0],), (*states, *states), [1, 2]])
            raw_states = states[0] if component == "LSTM" and chance(rng, 0.5) else raw_states

    training, grad = chance(rng, 0.6), chance(rng, 0.7)
    seed = rng.getrandbits(30)

    def make(ns: Namespace) -> Observed:
        seed_all(seed)
        module = getattr(ns, component)(*sizes, **options)
        seen = Observed(exact=module_facts(module))
        seen.exact["all_weights"] = [[tuple(w.shape) for w in part] for part in module.all_weights]
        module.train(training)
        inputs = {"input": leaf(data)} | {f"hx{i}": leaf(state) for i, state in enumerate(states or [])}
        given: Any = inputs["input"]
        if layout == "packed":
            given = PackedSequence(given, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        hx: Any = tuple(inputs[f"hx{i}"] for i in range(len(states))) if states else None
        if raw_states is not None:
            hx = raw_states
        elif hx is not None and component != "LSTM":
            hx = hx[0]
        # PyTorch's oneDNN kernel for the LSTM returns NaN for infinities for which the formula gives numbers, and reads
        # beyond a packed input of the wrong width instead of raising an error: in these cases, its native kernel is the
        # formula.
        onednn = kind != "nonfinite" and not wrong
        with torch.set_grad_enabled(grad), torch.backends.mkldnn.flags(enabled=onednn):
            output, final = module(given, hx)
        if layout == "packed":
            seen.exact |= {f"packed {i}": value for i, value in enumerate(output[1:])}
            output = output.data
        results = {"output": output} | ({"h_n": final[0], "c_n": final[1]} if component == "LSTM" else {"h_n": final})
        seen.exact["final kind"] = type(final)
        # Padded steps do not contribute, but 0 · inf in them turns a gradient, which is infinite anyway, into NaN.
        traceable = layout != "packed" or kind != "nonfinite"
        seen.close = results
        if traceable:
            parameters = dict(module.named_parameters())
            seen.derivatives = differentiate(results, inputs | parameters, seed, twice=False)
        return seen

    steps = max(lengths, default=time_steps)
    roundings = num_layers * steps * (input_size + 4 * hidden_size + 20)
    text = f"{component}({sizes}, {options}) {layout} {kind} input {tuple(data.shape)} {data.dtype}"
    text += f" hx={states is not None} training={training} grad={grad} wrong={wrong!r}"
    # Sums of large terms round in proportion to them, and so do the derivatives at these sums.
    # At an infinite input the LSTM's gradient is infinite or NaN, by which product of its four gates is taken first.
    overflows = ("gradient",) if component == "LSTM" and kind == "nonfinite" else ()
    return Call(text, make, roundings, gains={"gradient": math.sqrt(gain(data))}, overflows=overflows, warns=True)


def scaled_dot_product_attention(rng: random.Random) -> Call:
    dtype = rng.choice(DTYPES)
    leading = tuple(rng.randint(1, 4) for _ in range(rng.choice([0, 1, 2, 2, 2, 3])))
    if leading and chance(rng, 0.05):
        leading = (0, *leading[1:])
    queries, keys = rng.choice([0, 1, 2, 3, 5, 7]), rng.choice([0, 1, 2, 3, 5, 7])
    features = rng.choice([0, 1, 2, 3, 4, 8])
    values = features if chance(rng, 0.6) else rng.choice([0, 1, 3, 5])
    options: dict[str, Any] = {}
    key_leading = value_leading = leading
    if len(leading) and chance(rng, 0.25):
        options["enable_gqa"] = True
        groups, per_group = rng.choice([1, 2]), rng.choice([1, 2, 3])
        leading = (*leading[:-1], groups * per_group)
        key_leading = value_leading = (*leading[:-1], groups)
    elif len(leading) and chance(rng, 0.2):  # broadcast
        key_leading = tuple(rng.choice([1, size]) for size in leading)
        value_leading = tuple(rng.choice([1, size]) for size in leading)
        key_leading, value_leading = key_leading[rng.choice([0, 0, 1]) :], value_leading[rng.choice([0, 0, 1]) :]
    kind = number_kind(rng) if keys else "normal"  # PyTorch returns NaN for NaN queries without visible keys
    q = tensor(rng, (*leading, queries, features), dtype, kind)
    k = tensor(rng, (*key_leading, keys, features), dtype, kind)
    v = tensor(rng, (*value_leading, keys, values), dtype, kind)
    if chance(rng, 0.3):
        options["scale"] = rng.choice([0.0, 1.0, 0.3, -0.5, 2, 10.0])
    if chance(rng, 0.2):
        options["dropout_p"] = rng.choice([0, 0.0, 0.3, 0.9, 1.0])
    masking = rng.choice(["none", "causal", "bool", "float", "float32"])
    if masking == "causal":
        options["is_causal"] = True
    mask: Any = None
    mask_grad = False
    if masking in ("bool", "float", "float32"):
        shape = [rng.choice([1, size]) if chance(rng, 0.3) else size for size in (*leading, queries, keys)]
        # PyTorch accepts masks of fewer than 2 dimensions in some kernels only: not drawn.
        shape = shape[rng.randint(0, len(shape) - 2) :]
        mask = restride(rng, bool_mask(rng, tuple(shape), rng.choice([0.3, 0.7, 0.9])))
        if masking != "bool":
            numbers = tensor(rng, tuple(shape), torch.float64, "extreme" if kind == "extreme" else "normal")
            mask = torch.where(mask, numbers, rng.choice([-math.inf, 0.0, 0.0]))
            mask = mask.to(dtype if masking == "float" else torch.float32)
            mask_grad = chance(rng, 0.3)

    wrong = ""
    # If a dimension is 0, PyTorch's kernels return before their checks: no invalid argument is drawn.
    if chance(rng, 0.15) and all((*leading, queries, keys, features, values)):
        choices = ["dtype", "integers", "dimensions", "leading", "dropout", "mask and causal", "features"]
        choices += ["mask shape", "mask dtype"] if mask is not None else []
        choices += ["heads"] if options.get("enable_gqa") else []
        wrong = rng.choice(choices)
        if wrong == "dtype":
            other = rng.choice([other for other in DTYPES if other != dtype])
            q, k, v = rng.choice([(q.to(other), k, v), (q, k.to(other), v), (q, k, v.to(other))])
        elif wrong == "integers":
            q, k, v = (part.nan_to_num(0, 0, 0).long() for part in (q, k, v))
        elif wrong == "dimensions":
            q = q.reshape(-1)
        elif wrong == "features":
            k = tensor(rng, (*key_leading, keys, features + 1), dtype)
        elif wrong == "leading":
            q = q.expand(5, *q.shape).contiguous()
            k = tensor(rng, (6, *q.shape[1:-2], keys, features), dtype)
        elif wrong == "dropout":
            options["dropout_p"] = 1.5
        elif wrong == "mask and causal":
            mask = torch.ones(queries, keys, dtype=torch.bool)
            options["is_causal"] = True
        elif wrong == "mask shape":
            shape = list(mask.shape)  # pyright: ignore[reportOptionalMemberAccess]
            shape[rng.choice([-2, -1])] += 1
            shape = [*shape[:-2], max(shape[-2], 2), max(shape[-1], 2)]
            if shape[-2] in (queries, 1) and shape[-1] in (keys, 1):
                shape[-1] += 1
            mask = torch.zeros(shape, dtype=mask.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        elif wrong == "mask dtype":
            others = [torch.int64, torch.uint8, *(d for d in DTYPES if d not in (dtype, torch.float32))]
            mask = torch.zeros(mask.shape, dtype=rng.choice(others))  # pyright: ignore[reportOptionalMemberAccess]
        elif wrong == "heads":
            q = tensor(rng, (*leading[:-1], 5, queries, features), dtype)
            k = tensor(rng, (*leading[:-1], 3, keys, features), dtype)

    seed, grad = rng.getrandbits(30), chance(rng, 0.7)

    def make(ns: Namespace) -> Observed:
        seed_all(seed)
        inputs = {"query": leaf(q), "key": leaf(k), "value": leaf(v)}
        if mask_grad and not wrong:
            inputs["attn_mask"] = leaf(mask)
        # For infinities with a causal mask, PyTorch's kernels give different results; its math kernel is the formula.
        # With a causal mask and a negative scale its fused kernel gives NaN.
        odd = kind == "nonfinite" or options.get("scale", 1) < 0
        with torch.set_grad_enabled(grad), formulas(flash=not odd):
            output = ns.scaled_dot_product_attention(
                inputs["query"], inputs["key"], inputs["value"], inputs.get("attn_mask", mask), **options
            )
        seen = Observed(close={"output": output})
        if kind != "nonfinite":
            seen.derivatives = differentiate(seen.close, inputs, seed, twice=False)
        return seen

    text = f"q {tuple(q.shape)} k {tuple(k.shape)} v {tuple(v.shape)} {dtype} {kind} {masking} {options}"
    text += f" mask {None if mask is None else tuple(mask.shape)} grad={grad} wrong={wrong!r}"
    roundings = features + values + 2 * keys + queries + 30
    return Call(f"scaled_dot_product_attention {text}", make, roundings, gains={"gradient": gain(q, k, v)})


def gain(*parts: Tensor) -> float:
    """The largest finite magnitude squared, at least 1.

    The factor by which a rounding error can grow in a gradient: after a saturated softmax, by the differences of values
    that have the weight 0, and then by the keys.
    """
    return max([1.0, *(float(part.double().nan_to_num(0, 0, 0).abs().max()) ** 2 for part in parts if part.numel())])


def multihead_options(rng: random.Random) -> tuple[int, dict[str, Any]]:
    heads = rng.randint(1, 4)
    return heads * rng.randint(1, 4), {"num_heads": heads}


def masks(
    rng: random.Random, batch: int, heads: int, queries: int, keys: int, batched: bool, dtype: torch.dtype
) -> tuple[Any, Any]:
    """An attention mask and a padding mask for `MultiheadAttention`, bool or float, or None."""

    if 0 in (batch, queries, keys):  # PyTorch's reshape(..., -1) of a mask is ambiguous then, and raises an error
        return None, None

    def one(shape: tuple[int, ...]) -> Any:
        mask = restride(rng, bool_mask(rng, shape, rng.choice([0.1, 0.4])))
        if chance(rng, 0.5):
            numbers = tensor(rng, shape, dtype)
            return numbers.masked_fill(mask, -math.inf) if chance(rng, 0.5) else numbers
        return mask

    attn_mask = padding = None
    if chance(rng, 0.5):
        attn_mask = one(rng.choice([(queries, keys), (batch * heads, queries, keys)]))
    if chance(rng, 0.4):
        padding = one((batch, keys) if batched else (keys,))
    return attn_mask, padding


def multihead_attention(rng: random.Random) -> Call:
    dtype = rng.choice(DTYPES)
    embed_dim, options = multihead_options(rng)
    heads = options["num_heads"]
    for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first"):
        if chance(rng, 0.4):
            options[name] = chance(rng, 0.5)
    if chance(rng, 0.3):
        options["dropout"] = rng.choice([0, 0.0, 0.3, 1.0])
    for name in ("kdim", "vdim"):
        if chance(rng, 0.25):
            options[name] = rng.choice([1, 3, 5, embed_dim])
    if dtype != torch.float32 or chance(rng, 0.3):
        options["dtype"] = dtype

    batched, batch = chance(rng, 0.8), rng.choice([0, 1, 1, 2, 3])
    batch = batch if batched else 1
    queries, keys = rng.choice([0, 1, 2, 3, 5]), rng.choice([0, 1, 2, 3, 5])
    kind = number_kind(rng) if keys else "normal"

    def sequence(length: int, width: int) -> Tensor:
        if not batched:
            return tensor(rng, (length, width), dtype, kind)
        return tensor(
            rng, (batch, length, width) if options.get("batch_first") else (length, batch, width), dtype, kind
        )

    kdim, vdim = options.get("kdim", embed_dim), options.get("vdim", embed_dim)
    q, k, v = sequence(queries, embed_dim), sequence(keys, kdim), sequence(keys, vdim)
    self_attention = kdim == vdim == embed_dim and chance(rng, 0.4)
    if self_attention:
        keys, k, v = queries, q, q
    attn_mask, padding = masks(rng, batch, heads, queries, keys, batched, dtype)
    called: dict[str, Any] = {}
    for name in ("need_weights", "average_attn_weights"):
        if chance(rng, 0.5):
            called[name] = chance(rng, 0.4)
    if chance(rng, 0.2):
        called["is_causal"] = True
        attn_mask = torch.ones(queries, keys, dtype=torch.bool).triu(1)

    wrong = ""
    width: Any = embed_dim
    if chance(rng, 0.15):
        choices = [
            "query features",
            "key features",
            "value features",
            "dimensions",
            "query dimensions",
            "dtype",
            "divide",
        ]
        choices += ["size", "values", "attn shape", "attn dimensions", "padding shape", "mask dtype", "causal"]
        choices += ["batch"] if batched and keys else []
        wrong = rng.choice(choices)
        if wrong == "query features":
            q = sequence(queries, embed_dim + 1)
        elif wrong == "key features":
            k = sequence(keys, kdim + 1)
        elif wrong == "value features":
            v = sequence(keys, vdim + 1)
        elif wrong == "values":
            v = sequence(keys + 1, vdim)
        elif wrong == "dimensions":
            q, k, v = rng.choice([(q[None, None], k, v), (q, k[None], v[None]), (q, k[None, None], v), (q, k, v[None])])
        elif wrong == "query dimensions":
            q = q.reshape(-1)
        elif wrong == "dtype":
            other = rng.choice([other for other in (*DTYPES, torch.int64) if other != dtype])
            q, k, v = (part.nan_to_num(0, 0, 0).to(other) for part in (q, k, v))
        elif wrong == "divide":
            options["num_heads"] = embed_dim + 1
        elif wrong == "size":
            width, options["num_heads"] = rng.choice([(0, heads), (-heads, heads), (embed_dim, 0), (embed_dim, -1)])
        elif wrong == "batch":
            batch += 1
            k, v = sequence(keys, kdim), sequence(keys, vdim)
        elif wrong == "attn shape":
            called.pop("is_causal", None)
            attn_mask = bool_mask(
                rng, rng.choice([(queries + 1, keys), (queries, keys + 1), (7, queries, keys + 1)]), 0.5
            )
        elif wrong == "attn dimensions":
            called.pop("is_causal", None)
            attn_mask = bool_mask(rng, rng.choice([(keys,), (1, 1, queries, keys)]), 0.5)
        elif wrong == "padding shape":
            shapes = [(batch, keys + 1), (batch + 1, keys), (1, batch, keys)] if batched else [(keys + 1,), (1, keys)]
            padding = bool_mask(rng, rng.choice(shapes), 0.5)
        elif wrong == "mask dtype":
            others = [torch.int64, torch.uint8, *(d for d in DTYPES[1:] if d != dtype)]
            called.pop("is_causal", None)
            padding, attn_mask = None, torch.zeros(queries, keys, dtype=rng.choice(others))
        elif wrong == "causal":
            called["is_causal"], attn_mask = True, None

    training, grad, seed = chance(rng, 0.5), chance(rng, 0.7), rng.getrandbits(30)

    def make(ns: Namespace) -> Observed:
        seed_all(seed)
        module = ns.MultiheadAttention(width, **options)
        seen = Observed(exact=module_facts(module))
        module.train(training)
        for name, parameter in module.named_parameters():  # biases are initially 0: draw other values
            if "bias" in name:
                parameter.data.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
        inputs = {"query": leaf(q), "key": leaf(k), "value": leaf(v)}
        if self_attention and not wrong:
            inputs["key"] = inputs["value"] = inputs["query"]
        with torch.set_grad_enabled(grad), formulas(flash=kind != "nonfinite"):
            output, weights = module(
                inputs["query"], inputs["key"], inputs["value"], key_padding_mask=padding, attn_mask=attn_mask, **called
            )
        results = {"output": output} | ({} if weights is None else {"weights": weights})
        seen.close = results
        if kind != "nonfinite":
            parameters = dict(module.named_parameters())
            seen.derivatives = differentiate(results, inputs | parameters, seed, twice=False)
        return seen

    text = f"MultiheadAttention({width}, {options}) {kind} {q.dtype}"
    text += f" q {tuple(q.shape)} k {tuple(k.shape)} v {tuple(v.shape)}"
    for name, mask in (("attn_mask", attn_mask), ("padding", padding)):
        text += "" if mask is None else f" {name} {tuple(mask.shape)} {mask.dtype}"
    roundings = 4 * embed_dim + kdim + vdim + 2 * keys + queries * max(batch, 1) + 40
    text += f" {called} self={self_attention} training={training} grad={grad} wrong={wrong!r}"
    return Call(text, make, roundings, gains={"gradient": gain(q, k, v)})


def transformer_encoder_layer(rng: random.Random) -> Call:
    dtype = rng.choice(DTYPES)
    d_model, options = multihead_options(rng)
    heads = options["nhead"] = options.pop("num_heads")
    options["dim_feedforward"] = rng.randint(1, 9)
    for name in ("batch_first", "norm_first", "bias"):
        if chance(rng, 0.5):
            options[name] = chance(rng, 0.5)
    if chance(rng, 0.5):
        options["dropout"] = rng.choice([0, 0.0, 0.5, 1.0])
    if chance(rng, 0.3):
        options["layer_norm_eps"] = rng.choice([1e-3, 1e-8, 1.0])
    if chance(rng, 0.6):
        options["activation"] = rng.choice(["relu", "gelu", torch.sin, torch.nn.ReLU(), torch.nn.GELU(), torch.square])
    if dtype != torch.float32 or chance(rng, 0.3):
        options["dtype"] = dtype
    batched, batch = chance(rng, 0.8), rng.choice([0, 1, 2, 3])
    batch, length, kind = (batch if batched else 1), rng.choice([0, 1, 2, 3, 5]), number_kind(rng)
    shape = (batch, length) if options.get("batch_first") else (length, batch)
    src: Any = tensor(rng, (*(shape if batched else (length,)), d_model), dtype, kind)
    src_mask, padding = masks(rng, batch, heads, length, length, batched, dtype)
    called: dict[str, Any] = {}
    if chance(rng, 0.2):
        called["is_causal"], src_mask = True, torch.ones(length, length, dtype=torch.bool).triu(1)

    wrong = ""
    if chance(rng, 0.15):
        choices = ["features", "dimensions", "dtype", "activation", "dropout", "divide", "mask shape", "padding shape"]
        wrong = rng.choice([*choices, "mask dtype", "causal"])
        if wrong == "features":
            src = tensor(rng, (*src.shape[:-1], d_model + 1), dtype)
        elif wrong == "dimensions":
            src = rng.choice([src.reshape(-1), src[None, None]])
        elif wrong == "dtype":
            src = src.nan_to_num(0, 0, 0).to(rng.choice([other for other in (*DTYPES, torch.int64) if other != dtype]))
        elif wrong == "activation":
            options["activation"] = rng.choice(["tanh", "ReLU", ""])
        elif wrong == "dropout":
            options["dropout"] = rng.choice([-0.1, 1.1])
        elif wrong == "divide":
            options["nhead"] = d_model + 1
        elif wrong == "mask shape":
            called.pop("is_causal", None)
            src_mask = bool_mask(rng, rng.choice([(length + 1, length), (length,), (11, length, length)]), 0.5)
        elif wrong == "padding shape":
            padding = bool_mask(rng, (batch, length + 1) if batched else (length + 1,), 0.5)
        elif wrong == "mask dtype":
            called.pop("is_causal", None)
            padding, src_mask = None, torch.zeros(length, length, dtype=rng.choice([torch.int64, torch.uint8]))
        elif wrong == "causal":
            called["is_causal"], src_mask = True, None
    training, grad, seed = chance(rng, 0.5), chance(rng, 0.7), rng.getrandbits(30)

    def make(ns: Namespace) -> Observed:
        seed_all(seed)
        module = ns.TransformerEncoderLayer(d_model, **options)
        seen = Observed(exact=module_facts(module))
        module.train(training)
        inputs = {"src": leaf(src)}
        with torch.set_grad_enabled(grad), formulas(flash=kind != "nonfinite"):
            output = module(inputs["src"], src_mask, padding, **called)
        seen.close = {"output": output}
        if kind != "nonfinite":
            parameters = dict(module.named_parameters())
            seen.derivatives = differentiate(seen.close, inputs | parameters, seed, twice=False)
        return seen

    text = f"TransformerEncoderLayer({d_model}, {options}) src {tuple(src.shape)} {src.dtype} {kind}"
    for name, mask in (("src_mask", src_mask), ("padding", padding)):
        text += "" if mask is None else f" {name} {tuple(mask.shape)} {mask.dtype}"
    # each of the two norms subtracts the mean twice: two more sums over d_model, forward and backward
    roundings = 18 * d_model + 2 * options["dim_feedforward"] + 3 * length * max(batch, 1) + 88
    text += f" {called} training={training} grad={grad} wrong={wrong!r}"
    # A single feature equals its mean: the normalized value is only the rounding error times 1/√ε.
    alone = options.get("layer_norm_eps", 1e-5) ** -0.5 if d_model == 1 else 1.0
    return Call(text, make, roundings, gains={"gradient": gain(src) * max(1.0, alone)})


COMPONENTS: dict[str, Draw] = {
    "RNN": lambda rng: recurrent(rng, "RNN"),
    "LSTM": lambda rng: recurrent(rng, "LSTM"),
    "GRU": lambda rng: recurrent(rng, "GRU"),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "MultiheadAttention": multihead_attention,
    "TransformerEncoderLayer": transformer_encoder_layer,
}
