"""Chapters 08 to 14: combinations of options. Every pair of values of two options of a component occurs in some call.

The combinations are a covering array (`together`), not a manual choice. Values and gradients are compared with the
formulas of `spec/support/oracles.py`, which have the same options.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spec.support import oracles
from spec.support.assertions import Tolerance, assert_close, assert_equal, rejects
from spec.support.clauses import clause
from spec.support.harness import Tensors, numbers, results, together, whole
from spec.support.run import current

BOTH = (False, True)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A failure names the options."""
    with current().trace.off():
        yield


def check(
    call: Callable[[Tensors], Any], oracle: Callable[[Tensors], Any], tensors: Tensors, module: Any, options: Any
) -> None:
    """Compare outputs and gradients of a call with those of the oracle."""
    __tracebackhide__ = True
    parameters: Tensors = {} if module is None else dict(module.named_parameters())
    copies = {name: p.detach().cpu().clone().requires_grad_() for name, p in parameters.items()}
    device = torch.get_default_device()
    found = results(call, {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}, parameters, ())
    right = results(lambda leaves: oracle(leaves | copies), tensors, copies, ())
    assert found.keys() == right.keys(), f"{options}: got {list(found)}, expected {list(right)}"
    for name, exact in right.items():
        largest = 1 + float(exact.abs().max()) if exact.numel() else 1.0
        allowed = Tolerance(4096 * torch.finfo(torch.float64).eps * largest, "4,096 roundings to float64")
        assert_close(found[name].cpu(), exact, allowed if exact.is_floating_point() else Tolerance(0.0, "whole"),
            f"{options}: {name}")  # fmt: skip


def drawn(module: nn.Module) -> nn.Module:
    """The layer in float64 with drawn parameters."""
    module = module.to(torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=50 + i) / 2)
    return module


CONVOLUTIONS = together(
    {
        "kernel_size": (1, (3, 2), (2, 3)),
        "stride": (1, 2, (2, 1)),
        "padding": (0, 1, (2, 1), "same", "valid"),
        "dilation": (1, 2, (1, 2)),
        "groups": (1, 2),
        "bias": BOTH,
        "padding_mode": ("zeros", "reflect", "replicate", "circular"),
        "batched": BOTH,
    },
    lambda o: o["padding"] != "same" or o["stride"] == 1,
)


@clause("13.options.convolution")
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_options_of_convolution_together(conv2d: Callable[..., Tensor], Conv2d: Any) -> None:
    for combination in CONVOLUTIONS:
        options = dict(combination)
        x = {"input": numbers(*((2,) if options.pop("batched") else ()), 4, 7, 8)}
        module = drawn(Conv2d(4, 6, **options))
        bias, mode = options.pop("bias"), options.pop("padding_mode")
        del options["kernel_size"]
        check(
            lambda t, m=module: m(t["input"]),
            lambda t, o=options, mode=mode: oracles.conv2d(
                t["input"], t["weight"], t.get("bias"), **o, padding_mode=mode
            ),
            x,
            module,
            f"Conv2d {combination}",
        )
        weights = {"weight": module.weight.detach().cpu()} | ({"bias": module.bias.detach().cpu()} if bias else {})  # pyright: ignore[reportCallIssue]
        check(
            lambda t, o=options: conv2d(t["input"], t["weight"], t.get("bias"), **o),
            lambda t, o=options: oracles.conv2d(t["input"], t["weight"], t.get("bias"), **o),
            x | weights,
            None,
            f"conv2d {combination}",
        )


WINDOWS: dict[str, Any] = {
    "kernel_size": (2, 3, (3, 2)),
    "stride": (None, 1, 2, (2, 3)),
    "padding": (0, 1, (1, 0)),
    "ceil_mode": BOTH,
    "batched": BOTH,
}


@clause("13.options.pooling")
def test_options_of_maximum_pooling_together(max_pool2d: Callable[..., Any], MaxPool2d: Any) -> None:
    for combination in together({**WINDOWS, "dilation": (1, 2, (1, 2)), "return_indices": BOTH}):
        options = dict(combination)
        x = {"input": numbers(*((2,) if options.pop("batched") else ()), 3, 7, 8)}
        indices = options.pop("return_indices")

        def right(t: Tensors, o: Any = options, indices: bool = indices) -> Any:
            found = oracles.max_pool2d(t["input"], **o)
            return found if indices else found[0]

        check(
            lambda t, o=options, i=indices: max_pool2d(t["input"], **o, return_indices=i),
            right,
            x,
            None,
            f"max_pool2d {combination}",
        )
        module = MaxPool2d(**options, return_indices=indices)
        check(lambda t, m=module: m(t["input"]), right, x, None, f"MaxPool2d {combination}")


@clause("13.options.pooling")
def test_options_of_mean_pooling_together(avg_pool2d: Callable[..., Any], AvgPool2d: Any) -> None:
    for combination in together({**WINDOWS, "count_include_pad": BOTH, "divisor_override": (None, 3)}):
        options = dict(combination)
        x = {"input": numbers(*((2,) if options.pop("batched") else ()), 3, 7, 8)}
        right = lambda t, o=options: oracles.avg_pool2d(t["input"], **o)  # noqa: E731
        check(lambda t, o=options: avg_pool2d(t["input"], **o), right, x, None, f"avg_pool2d {combination}")
        module = AvgPool2d(**options)
        check(lambda t, m=module: m(t["input"]), right, x, None, f"AvgPool2d {combination}")


@clause("13.options.pooling")
def test_options_of_adaptive_pooling_together(adaptive_avg_pool2d: Callable[..., Any], AdaptiveAvgPool2d: Any) -> None:
    for o in together({"output_size": (1, 5, (2, 3), (None, 3), (5, None), (9, 1)), "batched": BOTH}):
        x = {"input": numbers(*((2,) if o["batched"] else ()), 3, 7, 8)}
        size = o["output_size"]
        right = lambda t, s=size: oracles.adaptive_avg_pool2d(t["input"], s)  # noqa: E731
        check(lambda t, s=size: adaptive_avg_pool2d(t["input"], s), right, x, None, f"adaptive_avg_pool2d {o}")
        module = AdaptiveAvgPool2d(size)
        check(lambda t, m=module: m(t["input"]), right, x, None, f"AdaptiveAvgPool2d {o}")


@clause("13.options.normalization")
def test_options_of_batch_norm_together(BatchNorm2d: Any) -> None:
    """Six batches in training and one in evaluation, which uses the running statistics."""
    choices = {"momentum": (None, 0.25, 1.0), "affine": BOTH, "track_running_stats": BOTH, "eps": (1e-5, 0.5)}
    for options in together(choices):
        module = drawn(BatchNorm2d(3, **options)).train()
        mean = torch.zeros(3, dtype=torch.float64, device="cpu")
        var = torch.ones(3, dtype=torch.float64, device="cpu")
        for number in range(7):
            training = number < 6
            module.train(training)
            x = numbers(4, 3, 2, 5, seed=number) * (number + 1) + number
            momentum = 1 / (number + 1) if options["momentum"] is None else options["momentum"]
            held = module.state_dict() if options["affine"] else {}
            weight, bias = (held[name].cpu() if name in held else None for name in ("weight", "bias"))
            found = module(x.to(torch.get_default_device()))
            own = training or not options["track_running_stats"]
            right, new_mean, new_var = oracles.batch_norm(x, mean, var, weight, bias, own, momentum, options["eps"])
            if training:
                assert new_mean is not None
                assert new_var is not None
                mean, var = new_mean, new_var
            what = f"BatchNorm2d {options}, batch {number + 1}:"
            allowed = Tolerance(1e-12 * (1 + float(right.abs().max())), "4,096 roundings to float64")
            assert_close(found.detach().cpu(), right, allowed, f"{what} the result")
            if options["track_running_stats"]:
                large = Tolerance(1e-11 * (1 + float(var.max())), "4,096 roundings to float64")
                assert_close(module.running_mean.cpu(), mean, large, f"{what} the running mean")
                assert_close(module.running_var.cpu(), var, large, f"{what} the running variance")


@clause("13.options.normalization")
def test_options_of_layer_norm_together(LayerNorm: Any) -> None:
    choices = {
        "normalized_shape": (5, (5,), (4, 5), [3, 4, 5]),
        "elementwise_affine": BOTH,
        "bias": BOTH,
        "eps": (1e-5, 0.5),
    }
    for options in together(choices):
        module = drawn(LayerNorm(**options))
        shape = options["normalized_shape"]
        shape = (shape,) if isinstance(shape, int) else shape
        check(
            lambda t, m=module: m(t["input"]),
            lambda t, s=shape, o=options: oracles.layer_norm(t["input"], s, t.get("weight"), t.get("bias"), o["eps"]),
            {"input": numbers(2, 3, 4, 5)},
            module,
            f"LayerNorm {options}",
        )


@clause("13.options.linear")
def test_options_of_linear_and_softmax_together(
    Linear: Any, softmax: Callable[..., Tensor], log_softmax: Callable[..., Tensor]
) -> None:
    for o in together({"shape": ((5,), (2, 5), (2, 3, 5), (0, 5)), "bias": BOTH}):
        module = drawn(Linear(5, 3, bias=o["bias"]))
        check(
            lambda t, m=module: m(t["input"]),
            lambda t: oracles.linear(t["input"], t["weight"], t.get("bias")),
            {"input": numbers(*o["shape"])},
            module,
            f"Linear {o}",
        )
    for o in together({"dim": (0, 1, 2, -1, -3), "dtype": (None, torch.float64)}):
        for name, function, right in (
            ("softmax", softmax, oracles.softmax),
            ("log_softmax", log_softmax, oracles.log_softmax),
        ):
            check(
                lambda t, f=function, o=o: f(t["input"], **o),
                lambda t, r=right, o=o: r(t["input"], o["dim"]),
                {"input": numbers(2, 3, 5)},
                None,
                f"{name} {o}",
            )


@clause("13.options.embedding")
def test_options_of_embedding_together(Embedding: Any) -> None:
    choices = {
        "padding_idx": (None, 0, -1),
        "max_norm": (None, 0.75),
        "norm_type": (2.0, 1.0),
        "scale_grad_by_freq": BOTH,
    }
    index = torch.tensor([[0, 2, 2], [4, 0, 2]], device="cpu")
    for options in together(choices):
        module = drawn(Embedding(5, 3, **options))
        table = module.weight.detach().cpu().clone()  # pyright: ignore[reportCallIssue]
        limit = options["max_norm"]
        if limit is not None:
            for row in (0, 2, 4):  # the rows that are looked up
                norm = table[row].abs().pow(options["norm_type"]).sum() ** (1 / options["norm_type"])
                table[row] *= min(1.0, float(limit / (norm + 1e-7)))
        found = module(index.to(torch.get_default_device()))
        allowed = Tolerance(1e-12, "a dozen roundings to float64")
        assert_close(found.detach().cpu(), table[index.cpu()], allowed, f"Embedding {options}: the rows")
        upstream = numbers(2, 3, 3, seed=1)
        found.backward(upstream.to(found))
        gradient = torch.zeros(5, 3, dtype=torch.float64, device="cpu")
        times = {0: 2, 2: 3, 4: 1}
        for place, row in enumerate(index.flatten().tolist()):
            gradient[row] += upstream.reshape(-1, 3)[place] / (times[row] if options["scale_grad_by_freq"] else 1)
        if options["padding_idx"] is not None:
            gradient[options["padding_idx"]] = 0
        assert_close(module.weight.grad.cpu(), gradient, allowed, f"Embedding {options}: the gradient")  # pyright: ignore[reportOptionalMemberAccess]


def scores_and_target(o: dict[str, Any]) -> Tensors:
    shape = {"one": (5,), "rows": (4, 5), "images": (2, 5, 3, 2)}[o["shape"]]
    places = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    if o.get("target") == "probabilities":
        return {"input": numbers(*shape), "target": numbers(*shape, seed=1).softmax(1 if len(shape) > 1 else 0)}
    target = whole(*places, below=5, seed=1) if places else torch.tensor(3, device="cpu")
    return {"input": numbers(*shape), "target": target}


LOSSES: dict[str, Any] = {
    "reduction": ("none", "mean", "sum"),
    "weight": BOTH,
    "ignore_index": (-100, 1, 4),
    "shape": ("one", "rows", "images"),
}


def weighted(options: dict[str, Any]) -> dict[str, Any]:
    weight = torch.tensor([0.5, 1.0, 0.25, 2.0, 1.5], dtype=torch.float64) if options["weight"] else None
    return {name: value for name, value in options.items() if name not in ("shape", "target")} | {"weight": weight}


def on_cpu(options: dict[str, Any]) -> dict[str, Any]:
    return {name: v.cpu() if isinstance(v, Tensor) else v for name, v in options.items()}


@clause("13.options.losses")
def test_options_of_cross_entropy_together(cross_entropy: Callable[..., Tensor], CrossEntropyLoss: Any) -> None:
    choices = {**LOSSES, "label_smoothing": (0.0, 0.25), "target": ("classes", "probabilities")}
    for combination in together(choices, lambda o: o["target"] == "classes" or o["ignore_index"] < 0):
        tensors, options = scores_and_target(combination), weighted(combination)
        target = {"target": tensors.pop("target")}
        right = lambda t, o=options, y=target: oracles.cross_entropy(t["input"], y["target"], **on_cpu(o))  # noqa: E731
        here = target["target"].to(torch.get_default_device())
        check(
            lambda t, o=options, y=here: cross_entropy(t["input"], y, **o),
            right,
            tensors,
            None,
            f"cross_entropy {combination}",
        )
        module = CrossEntropyLoss(**options)
        check(lambda t, m=module, y=here: m(t["input"], y), right, tensors, None, f"CrossEntropyLoss {combination}")


@clause("13.options.losses")
def test_options_of_nll_loss_together(nll_loss: Callable[..., Tensor], NLLLoss: Any) -> None:
    for combination in together(LOSSES):
        tensors, options = scores_and_target(combination), weighted(combination)
        target = tensors.pop("target")
        right = lambda t, o=options, y=target: oracles.nll_loss(t["input"], y, **on_cpu(o))  # noqa: E731
        here = target.to(torch.get_default_device())
        check(
            lambda t, o=options, y=here: nll_loss(t["input"], y, **o), right, tensors, None, f"nll_loss {combination}"
        )
        module = NLLLoss(**options)
        check(lambda t, m=module, y=here: m(t["input"], y), right, tensors, None, f"NLLLoss {combination}")


def recurrences(**more: Any) -> list[dict[str, Any]]:
    return together(
        {
            "num_layers": (1, 2, 3),
            "bias": BOTH,
            "batch_first": BOTH,
            "bidirectional": BOTH,
            "dropout": (0.0, 0.5),  # in evaluation
            "batched": BOTH,
            "state": BOTH,
            **more,
        },
        lambda o: o["dropout"] == 0 or o["num_layers"] > 1,
    )


def check_recurrent(kind: str, component: Any, combinations: list[dict[str, Any]]) -> None:
    __tracebackhide__ = True
    for combination in combinations:
        options = dict(combination)
        batched, given = options.pop("batched"), options.pop("state")
        module = drawn(component(3, 4, **options)).eval()
        directions, size = 1 + options["bidirectional"], options.get("proj_size") or 4
        batch = (2,) if batched else ()
        steps = (2, 5) if batched and options["batch_first"] else (5, *batch)
        tensors = {"input": numbers(*steps, 3)}
        if given:
            count = options["num_layers"] * directions
            tensors["h"] = numbers(count, *batch, size, seed=1)
            if kind == "LSTM":
                tensors["c"] = numbers(count, *batch, 4, seed=2)
        known = ("num_layers", "batch_first", "bidirectional", "proj_size", "nonlinearity")
        own = {name: value for name, value in options.items() if name in known}

        def states(t: Tensors, given: bool = given) -> Any:
            if not given:
                return ()
            return ((t["h"], t["c"]),) if kind == "LSTM" else (t["h"],)

        def right(t: Tensors, own: Any = own) -> Any:
            state = tuple(t[name] for name in ("h", "c") if name in t)
            return oracles.recurrent(kind, t, t["input"], state or None, hidden_size=4, **own)

        check(lambda t, m=module: m(t["input"], *states(t)), right, tensors, module, f"{kind} {combination}")


@clause("13.options.recurrent")
def test_options_of_rnn_together(RNN: Any) -> None:
    check_recurrent("RNN", RNN, recurrences(nonlinearity=("tanh", "relu")))


@clause("13.options.recurrent")
def test_options_of_lstm_together(LSTM: Any) -> None:
    check_recurrent("LSTM", LSTM, recurrences(proj_size=(0, 2)))


@clause("13.options.recurrent")
def test_options_of_gru_together(GRU: Any) -> None:
    check_recurrent("GRU", GRU, recurrences())


@clause("13.options.between_layers")
def test_dropout_of_recurrent_layers_is_between_them_and_not_after_the_last(RNN: Any, LSTM: Any, GRU: Any) -> None:
    """With probability 1 in training, the input of each layer except the first is zero, but the last result is not."""
    x = {"input": numbers(5, 2, 3)}
    for kind, component in (("RNN", RNN), ("LSTM", LSTM), ("GRU", GRU)):
        module = drawn(component(3, 4, num_layers=2, dropout=1.0)).train()

        def right(t: Tensors, kind: str = kind) -> Any:
            first = oracles.recurrent(kind, t, t["input"], hidden_size=4)
            second = {name.replace("_l1", "_l0"): w for name, w in t.items() if "_l1" in name}
            last = oracles.recurrent(kind, second, torch.zeros_like(first[0]), hidden_size=4)
            return last[0], *(torch.cat([a, b]) for a, b in zip(first[1:], last[1:], strict=True))

        check(lambda t, m=module: m(t["input"]), right, x, module, f"{kind} with dropout=1.0")


@clause("13.options.attention")
def test_options_of_attention_together(scaled_dot_product_attention: Callable[..., Tensor]) -> None:
    choices = {"mask": (None, "bool", "float"), "is_causal": BOTH, "scale": (None, 0.25), "enable_gqa": BOTH}
    for o in together(choices, lambda o: not (o["is_causal"] and o["mask"])):
        heads = 2 if o["enable_gqa"] else 4
        tensors = {
            "query": numbers(2, 4, 5, 3),
            "key": numbers(2, heads, 6, 3, seed=1),
            "value": numbers(2, heads, 6, 2, seed=2),
        }
        mask = None
        if o["mask"] == "bool":
            mask = numbers(5, 6, seed=3) < 1
        elif o["mask"]:
            mask = numbers(2, 1, 5, 6, seed=3)
        options = {name: value for name, value in o.items() if name != "mask"}
        here = None if mask is None else mask.to(torch.get_default_device())
        check(
            lambda t, m=here, s=options: scaled_dot_product_attention(*t.values(), attn_mask=m, **s),
            lambda t, m=mask, s=options: oracles.scaled_dot_product_attention(*t.values(), attn_mask=m, **s),
            tensors,
            None,
            f"scaled_dot_product_attention {o}",
        )


def attention_mask(kind: str | None, *shape: int) -> Tensor | None:
    """The first key is always visible."""
    if kind is None:
        return None
    mask = numbers(*shape, seed=3)
    mask[..., 0] = 0
    return mask > 0.5 if kind == "bool" else mask


@clause("13.options.attention")
def test_options_of_multihead_attention_together(MultiheadAttention: Any) -> None:
    choices = {
        "bias": BOTH,
        "add_bias_kv": BOTH,
        "add_zero_attn": BOTH,
        "sizes": ((None, None), (3, 5)),
        "batch_first": BOTH,
        "need_weights": BOTH,
        "average_attn_weights": BOTH,
        "key_padding_mask": (None, "bool", "float"),
        "attn_mask": (None, "bool", "float"),
        "heads_mask": BOTH,
        "batched": BOTH,
    }

    def allowed(o: dict[str, Any]) -> bool:
        return None in (o["key_padding_mask"], o["attn_mask"]) or o["key_padding_mask"] == o["attn_mask"]

    for o in together(choices, allowed):
        (kdim, vdim), first = o["sizes"], o["batch_first"]
        made = {name: o[name] for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
        module = drawn(MultiheadAttention(4, 2, kdim=kdim, vdim=vdim, **made))

        def sequence(length: int, width: int, seed: int, o: Any = o) -> Tensor:
            batch = ((2, length) if o["batch_first"] else (length, 2)) if o["batched"] else (length,)
            return numbers(*batch, width, seed=seed)

        tensors = {"query": sequence(3, 4, 0), "key": sequence(5, kdim or 4, 1), "value": sequence(5, vdim or 4, 2)}
        padding = attention_mask(o["key_padding_mask"], *((2,) if o["batched"] else ()), 5)
        many = ((4,) if o["batched"] else (2,)) if o["heads_mask"] else ()
        mask = attention_mask(o["attn_mask"], *many, 3, 5)
        device = torch.get_default_device()
        here = {
            "key_padding_mask": None if padding is None else padding.to(device),
            "attn_mask": None if mask is None else mask.to(device),
        }
        asked = {name: o[name] for name in ("need_weights", "average_attn_weights")}

        def call(t: Tensors, m: Any = module, asked: Any = asked, here: Any = here) -> Any:
            return m(t["query"], t["key"], t["value"], **here, **asked)

        def right(t: Tensors, o: Any = o, first: bool = first, padding: Any = padding, mask: Any = mask) -> Any:
            found = oracles.multihead_attention(
                t,
                t["query"],
                t["key"],
                t["value"],
                num_heads=2,
                batch_first=first,
                add_zero_attn=o["add_zero_attn"],
                key_padding_mask=padding,
                attn_mask=mask,
                average_attn_weights=o["average_attn_weights"],
            )
            return found if o["need_weights"] else found[0]

        check(call, right, tensors, module, f"MultiheadAttention {o}")


@clause("13.options.attention")
def test_options_of_the_encoder_layer_together(TransformerEncoderLayer: Any) -> None:
    choices = {
        "activation": ("relu", "gelu"),
        "batch_first": BOTH,
        "norm_first": BOTH,
        "bias": BOTH,
        "layer_norm_eps": (1e-5, 0.5),
        "dropout": (0.0, 0.5),  # in evaluation
        "src_mask": (None, "bool", "float"),
        "src_key_padding_mask": (None, "bool", "float"),
        "batched": BOTH,
    }

    def allowed(o: dict[str, Any]) -> bool:
        return None in (o["src_mask"], o["src_key_padding_mask"]) or o["src_mask"] == o["src_key_padding_mask"]

    made = ("activation", "batch_first", "norm_first", "bias", "layer_norm_eps", "dropout")
    for o in together(choices, allowed):
        module = drawn(TransformerEncoderLayer(4, 2, 6, **{name: o[name] for name in made})).eval()
        batch = ((2, 5) if o["batch_first"] else (5, 2)) if o["batched"] else (5,)
        masks = {
            "src_mask": attention_mask(o["src_mask"], 5, 5),
            "src_key_padding_mask": attention_mask(o["src_key_padding_mask"], *((2,) if o["batched"] else ()), 5),
        }
        here = {name: None if m is None else m.to(torch.get_default_device()) for name, m in masks.items()}

        def right(t: Tensors, o: Any = o, masks: Any = masks) -> Any:
            return oracles.encoder_layer(
                t,
                t["src"],
                nhead=2,
                activation=o["activation"],
                batch_first=o["batch_first"],
                norm_first=o["norm_first"],
                eps=o["layer_norm_eps"],
                **masks,
            )

        check(
            lambda t, m=module, here=here: m(t["src"], **here),
            right,
            {"src": numbers(*batch, 4)},
            module,
            f"TransformerEncoderLayer {o}",
        )


@clause("13.options.sequential")
def test_a_layer_is_inserted_into_an_empty_sequential(Sequential: Any) -> None:
    made, first, second = Sequential(), nn.Tanh(), nn.ReLU()
    assert made.insert(0, first) is made
    assert list(made) == [first]
    made.insert(0, second)
    assert list(made) == [second, first]
    made.insert(2, nn.Sigmoid())
    assert list(made._modules) == ["0", "1", "2"]
    x = numbers(5)
    assert_equal(made(x), first(second(x)).sigmoid())


@clause("13.options.no_channels")
def test_a_convolution_without_output_channels_is_rejected(conv2d: Callable[..., Tensor]) -> None:
    with rejects(naming="weight"):
        conv2d(numbers(2, 3, 5, 6), torch.zeros(0, 3, 3, 3, dtype=torch.float64))


@clause("13.options.covering")
def test_a_covering_array_has_every_pair_that_is_allowed() -> None:
    choices = {"a": (1, 2, 3), "b": "xy", "c": (False, True), "d": (None, 0)}
    found = together(choices, lambda o: not (o["a"] == 1 and o["b"] == "x"))
    assert len(found) < 3 * 2 * 2 * 2
    pairs = {(i, o[i], j, o[j]) for o in found for i in choices for j in choices if i < j}
    wanted = {(i, x, j, y) for i in choices for j in choices if i < j for x in choices[i] for y in choices[j]}
    assert pairs == wanted - {("a", 1, "b", "x")}
