"""Differences of PyTorch's releases from 2.6 on, and of its kernels for some processors, that tests detect.

The specification describes the newest release. An older release fails some tests when it is itself the implementation
under test; these tests are expected to fail (a strict xfail with its reason). Each difference is detected by trying the
behaviour, never by the version number. No other implementation is excused.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

if TYPE_CHECKING:  # scripts/doctor.py runs without pytest
    import pytest

ROWS = torch.zeros(1, 2, device="cpu")


def _names(call: Callable[[], Any], pattern: str) -> bool:
    """Whether `call` raises an error that matches `pattern`."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return re.search(pattern, str(error), re.IGNORECASE) is not None
    return False


def _accepts(call: Callable[[], Any]) -> bool:
    """Whether `call` returns."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError):
        return False
    return True


def _warns(call: Callable[[], Any]) -> bool:
    """Whether `call` gives a warning."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return bool(found)


def batch_norm_has_bias() -> bool:
    """Whether PyTorch's `BatchNorm2d` takes `bias`."""
    return "bias" in inspect.signature(nn.BatchNorm2d).parameters


def adds_up_kernel_gradients(dtype: torch.dtype) -> bool:
    """Whether the gradient of a 1×1 kernel over 4,160 images is accumulated in a wider type.

    This is the case if oneDNN has kernels for the dtype, which depends on the processor.
    """
    weight = torch.ones(1, 1, 1, 1, dtype=dtype, device="cpu", requires_grad=True)
    images = torch.ones(4096 + 64, 1, 1, 1, dtype=dtype, device="cpu")
    nn.functional.conv2d(images, weight).backward(images)
    return weight.grad is not None and float(weight.grad) > 4000


def takes_betas_of_one_dimension() -> bool:
    """Whether Adam takes betas that are tensors of shape [1]."""
    weight = nn.Parameter(torch.zeros(1, device="cpu"))
    weight.grad = torch.zeros(1, device="cpu")
    betas = (torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))
    return _accepts(torch.optim.Adam([weight], betas=betas).step)  # pyright: ignore[reportArgumentType]


def takes_a_learning_rate_of_one_dimension() -> bool:
    """Whether the optimizers take a learning rate that is a tensor of shape [1]."""
    weight = nn.Parameter(torch.zeros(1, device="cpu"))
    weight.grad = torch.zeros(1, device="cpu")
    return _accepts(torch.optim.SGD([weight], lr=torch.ones(1, device="cpu")).step)


def warns_without_an_accelerator() -> bool:
    """Whether the DataLoader warns that `pin_memory` has no effect; with an accelerator it has one."""
    loader = DataLoader([0], pin_memory=True)  # pyright: ignore[reportArgumentType]
    return torch.accelerator.is_available() or _warns(lambda: list(loader))


def tf32_settings() -> tuple[tuple[Any, ...], str, Any, Any]:
    """PyTorch's settings for TF32, the name of their attribute, and the values that allow and forbid it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return (matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "tf32", "ieee"  # pyright: ignore[reportAttributeAccessIssue]
    return (matmul, cudnn), "allow_tf32", True, False


@dataclass(frozen=True)
class Difference:
    """A behaviour that an older release, or a kernel for some processors, lacks.

    Attributes:
        tests: A regular expression for the beginning of the ids of the tests that fail.
        newer: Whether the installed release has the behaviour.
        reason: The behaviour of the older release.
        reason_zh: The same in Chinese.
        of_processor: Whether the behaviour depends on the processor instead of the release.
    """

    tests: str
    newer: Callable[[], bool]
    reason: str
    reason_zh: str
    of_processor: bool = False


DIFFERENCES = (
    *(
        Difference(
            rf"spec/test_13_sizes\.py::\w+::test_of_a_kernel\[torch-many images-{re.escape(str(dtype))}\]",
            partial(adds_up_kernel_gradients, dtype),
            "the kernels of this processor add up the gradient of a kernel in its dtype: docs/found.md, 9",
            "此处理器的内核以卷积核自身的 dtype 累加其梯度：docs/found.zh-CN.md，第 9 节",
            of_processor=True,
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
    Difference(
        r"spec/test_06_collate\.py::test_containers_keep_the_type\[torch-np\.bool_ becomes bool\]",
        lambda: _accepts(lambda: torch.as_tensor(np.bool_(True))),
        "this release makes no tensor of a bool of NumPy 2",
        "不能由 NumPy 2 的 bool 生成张量",
    ),
    Difference(
        r"spec/test_06_workers\.py::test_pin_memory_without_an_accelerator_only_warns\[torch\]",
        warns_without_an_accelerator,
        "this release's DataLoader does not warn that pin_memory has no effect without an accelerator",
        "没有加速器时，DataLoader 不警告 pin_memory 不起作用",
    ),
    Difference(
        r"spec/test_12_normalization\.py::test_batch_norm_layer_prints_the_arguments\[torch-",
        batch_norm_has_bias,
        "this release's BatchNorm2d takes no bias argument and prints none",
        "BatchNorm2d 没有 bias 参数，也不打印它",
    ),
    Difference(
        r"spec/test_12_normalization\.py::test_batch_norm_state_dict_starts_neutral.*\[torch-no bias\]",
        batch_norm_has_bias,
        "this release's BatchNorm2d takes no bias argument and prints none",
        "BatchNorm2d 没有 bias 参数，也不打印它",
    ),
    Difference(
        r"spec/test_12_(normalization\.py::test_layer_norm_layer_prints.*|attention_encoder\.py::test_encoder_prints.*)"
        r"\[torch[-\]]",
        lambda: "bias" in repr(nn.LayerNorm(1)),
        "this release's LayerNorm does not print bias",
        "LayerNorm 不打印 bias",
    ),
    Difference(
        r"spec/test_12_normalization\.py::test_evaluation_uses_running_statistics_without_updating\[torch\]",
        lambda: _accepts(lambda: nn.functional.batch_norm(ROWS, torch.zeros(2), torch.ones(2), eps=0.0)),
        "this release's batch_norm refuses eps=0",
        "batch_norm 拒绝 eps=0",
    ),
    Difference(
        r"spec/test_12_normalization\.py::test_batch_norm_rejects\[torch-(a negative|no) eps",
        lambda: not _accepts(lambda: nn.functional.batch_norm(ROWS, torch.zeros(2), torch.ones(2), eps=-1.0)),
        "this release's batch_norm accepts every eps",
        "batch_norm 接受任何 eps",
    ),
    Difference(
        r"spec/test_12_normalization\.py::test_batch_norm_rejects\[torch-a running (mean without|variance without) a ",
        lambda: not _accepts(lambda: nn.functional.batch_norm(ROWS.expand(2, 2), ROWS[0], None, training=True)),
        "this release's batch_norm accepts in training a running mean without a variance, and the reverse",
        "训练时 batch_norm 接受只有均值或只有方差的运行统计量",
    ),
    Difference(
        r"spec/test_12_recurrent\.py::Test\w+::test_an_impossible_layer_is_rejected"
        r"\[torch-(no input features|a number for (bias|batch_first))\]",
        lambda: not _accepts(lambda: nn.RNN(0, 1)),
        "this release's recurrent layers accept an input of no features and a number for a truth value",
        "循环层接受没有特征的输入，也接受用数代替真值",
    ),
    Difference(
        r"spec/test_13_container\.py::test_drawing_the_graph_warns_that_the_tracer_is_deprecated$",
        lambda: _warns(lambda: torch.jit.trace(torch.abs, ROWS)),
        "this release's tracer is not deprecated yet",
        "追踪器 torch.jit.trace 尚未弃用",
    ),
    Difference(
        r"spec/test_15_optim_options\.py::Test\w+::test_betas_may_be_two_tensors_of_one_number\[torch-with one\]",
        takes_betas_of_one_dimension,
        "this release's Adam takes betas that are tensors only without dimensions",
        "betas 为张量时只接受零维张量",
    ),
    Difference(
        r"spec/test_15_optim\.py::Test\w+::test_a_learning_rate_may_be_a_tensor_of_one_number\[torch-with one\]",
        takes_a_learning_rate_of_one_dimension,
        "this release's optimizers take a learning rate that is a tensor only without dimensions",
        "学习率为张量时，优化器只接受零维张量",
    ),
    Difference(
        r"spec/test_agreement\.py::test_random_calls_agree_with_pytorch\[Adam\]",
        takes_a_learning_rate_of_one_dimension,
        "this release's optimizers take a learning rate that is a tensor only without dimensions",
        "学习率为张量时，优化器只接受零维张量",
    ),
    Difference(
        r"spec/test_agreement\.py::test_random_calls_agree_with_pytorch\[AdamW\]",
        lambda: "decoupled_weight_decay" in torch.optim.AdamW([ROWS]).param_groups[0],
        "the groups of this release's AdamW have no decoupled_weight_decay",
        "AdamW 的参数组没有 decoupled_weight_decay",
    ),
    Difference(
        r"spec/test_10_pooling\.py::test_avg_pool2d_rejects\[torch-a (step back|window of n|negative w)",
        lambda: _names(lambda: nn.functional.avg_pool2d(ROWS[None], -1), "kernel"),
        "this release's avg_pool2d refuses a window below 1, but its error does not name the argument",
        "avg_pool2d 拒绝小于 1 的窗口，但错误没有指出参数名",
    ),
    Difference(
        r"spec/test_11_activation\.py::test_(log_)?softmax_rejects\[torch-a dimension in words\]",
        lambda: _names(lambda: nn.functional.softmax(ROWS, dim="one"), "dim.* must be .*int"),  # pyright: ignore[reportArgumentType]
        "this release's softmax takes named dimensions, and its error lists the signatures",
        "softmax 接受命名维度，其错误只列出函数签名",
    ),
    Difference(
        r"spec/test_12_linear\.py::test_a_layer_of_impossible_sizes_is_rejected\[torch-half an output\]",
        lambda: _names(lambda: nn.Linear(2, 0.5), "out_features|'size'"),  # pyright: ignore[reportArgumentType]
        "this release's Linear refuses a fraction of an output, but its error does not name the argument",
        "Linear 拒绝带小数的输出数，但错误没有指出参数名",
    ),
    Difference(
        r"spec/test_14_cross_entropy\.py::test_the_(nll_loss|cross_entropy)_rejects\[torch-class numbers that",
        lambda: _names(lambda: nn.functional.nll_loss(ROWS, torch.zeros(1)), "target"),
        "this release's nll_loss refuses class numbers in floating point, but its error does not name the argument",
        "nll_loss 拒绝浮点类别号，但错误没有指出参数名",
    ),
    Difference(
        r"spec/test_14_loss\.py::test_the_l1_loss_"
        r"(rejects\[torch-weights for|takes_a_weight_for_each_element\[torch\])",
        lambda: float(nn.functional.l1_loss(ROWS + 1, ROWS, reduction="sum", weight=torch.full_like(ROWS, 2.0))) == 4,  # pyright: ignore[reportCallIssue]
        "this release's l1_loss ignores weight while a default device is set",
        "设置默认设备时 l1_loss 忽略 weight",
    ),
)
"""All differences, with the tests of PyTorch itself that detect them."""


def attention_has_forward_derivative() -> bool:
    """Whether `jvp` of `scaled_dot_product_attention` is implemented; for the flash kernel it is not."""
    x = torch.zeros(1, 2, 1, device="cpu")
    attention = partial(nn.functional.scaled_dot_product_attention, is_causal=True)
    return _accepts(lambda: torch.func.jvp(attention, (x, x, x), (x, x, x)))


WITHOUT_FAULT = (
    (
        r"spec/test_13_func_and_export\.py::test_jvp_(equals_the_directional_derivative|of_grad_equals_the_hessian_along_a_direction)"
        r"\[torch-scaled_dot_product_attention\]",
        attention_has_forward_derivative,
    ),
)
"""Known failures of the newest release that another release may not have: the tests, and how to find out."""


def is_free_of(test: str) -> bool:
    """Whether the installed release passes a test that the newest release is known to fail."""
    return any(re.match(pattern, test) and passes() for pattern, passes in WITHOUT_FAULT)


@cache
def missing() -> tuple[Difference, ...]:
    """The behaviours that the installed release lacks."""
    return tuple(difference for difference in DIFFERENCES if not difference.newer())


def batch_norm_2d(features: int, **options: Any) -> nn.BatchNorm2d:
    """PyTorch's `BatchNorm2d`; if it has no argument `bias`, a layer without the parameter for `bias=False`."""
    if batch_norm_has_bias():
        return nn.BatchNorm2d(features, **options)
    bias = options.pop("bias", True)
    layer = nn.BatchNorm2d(features, **options)
    if not bias:
        layer.register_parameter("bias", None)
    return layer


def printed_here(text: str) -> str:
    """The text of the installed release for `text` of the newest one: some layers do not print `bias`."""
    if not batch_norm_has_bias():
        text = re.sub(r"(BatchNorm2d\([^()]*affine=\w+), bias=\w+", r"\1", text)
    if "bias" not in repr(nn.LayerNorm(1)):
        text = re.sub(r"(LayerNorm\(\([^()]*\)[^()]*elementwise_affine=\w+), bias=\w+", r"\1", text)
    return text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the failures of an older PyTorch that is itself under test.

    Only the behaviours of tests in this run are tried: to try all of them takes seconds.
    """
    import pytest

    for difference in DIFFERENCES:
        tests = re.compile(difference.tests)
        found = [item for item in items if tests.match(item.nodeid)]
        if found and not difference.newer():
            for item in found:
                item.add_marker(pytest.mark.xfail(reason=difference.reason, strict=True))


def reasons(*, chinese: bool = False) -> list[str]:
    """The differences of the installed PyTorch from the newest release, in words; not those of the processor."""
    found = [difference for difference in missing() if not difference.of_processor]
    return list(dict.fromkeys(difference.reason_zh if chinese else difference.reason for difference in found))


def main() -> None:
    """Print the behaviours that differ between the installed PyTorch and the newest release."""
    print(f"PyTorch {torch.__version__}: {len(reasons())} differences from the newest release")
    for reason in reasons():
        print(f"- {reason}")


if __name__ == "__main__":
    main()
