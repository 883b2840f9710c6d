"""The speed of a training step, its share of the GEMM rate, and its operations."""

from collections.abc import Callable

import torch

from benchmarks.pairs import Ratio, compare
from benchmarks.training.loops import FLOPS, Images, Tutorial, our_steps, row
from reference.messages import counted


def steps_per_second() -> None:
    images = Images(train=True)
    tutorial = Tutorial(10)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        ratio = compare(tutorial, our_steps(images, 10, dtype), seconds=0.4)
        row(f"steps/s, {name}, against the tutorial's loop", ratio, f"{1e2 * ratio.second:.1f} ms a step")
    tutorial.close()


def choices() -> None:
    """A step with other numbers of threads and another memory format, against a step with those of a training."""
    images, chosen = Images(train=True), torch.get_num_threads()
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        step = our_steps(images, 10, dtype)
        for threads in sorted({1, chosen // 4, chosen // 2} - {0, chosen}):

            def with_threads(step: Callable[[], float] = step, threads: int = threads) -> None:
                torch.set_num_threads(threads)
                step()
                torch.set_num_threads(chosen)

            ratio = compare(with_threads, step, seconds=0.4)
            row(f"time of a step in {name}: with {counted(threads, 'thread')}, against {chosen}", ratio)
        contiguous = our_steps(images, 10, dtype, memory_format=torch.contiguous_format)
        row(f"time of a step in {name}: contiguous, against channels last", compare(contiguous, step, seconds=0.4))


def gemm_share() -> None:
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        step = our_steps(Images(train=True), 1, dtype)
        ratio = compare(lambda a=a, b=b: a @ b, step, seconds=0.3)
        scale = FLOPS / (2 * 2048**3)
        share = Ratio(tuple(one * scale for one in ratio.ratios), ratio.first, ratio.second)
        row(f"share of the GEMM rate, {name}", share, f"GEMM {2 * 2048**3 / ratio.first / 1e9:.0f} GFLOP/s")


KINDS = {
    "convolution, forward": ("aten::mkldnn_convolution",),
    "convolution, backward": ("aten::convolution_backward",),
    "pooling, forward": ("aten::max_pool2d_with_indices",),
    "pooling, backward": ("aten::max_pool2d_with_indices_backward", "aten::zero_", "aten::fill_"),
    "linear layers": ("aten::addmm", "aten::mm"),
    "casts and copies": ("aten::copy_",),
}


def profile() -> None:
    """The operations that take the time of a step, by PyTorch's profiler."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        step = our_steps(Images(train=True), 1, dtype)
        step()
        with torch.profiler.profile() as profiler:
            for _ in range(40):
                step()
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        total = sum(times.values())
        shares = {kind: sum(times.get(key, 0) for key in keys) / total for kind, keys in KINDS.items()}
        shares["rest"] = 1 - sum(shares.values())
        for kind, share in shares.items():
            print(f"| share of a step, {name}: {kind} | {share:.1%} | {share * total / 40e3:.2f} ms |", flush=True)
