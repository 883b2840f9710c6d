"""Print ratios of pairs, the reference against PyTorch and against matrix products alone, as a Markdown table."""

import argparse
import os
import sys
import time

import torch
from torch import Tensor

from benchmarks import test_activation, test_convolution, test_loss, test_optim, test_pooling
from benchmarks.cases import BATCH, Case, Pass, Step, timed
from benchmarks.pairs import HEAD, PAIRS, compare, row
from reference.device import keep_freed_memory
from reference.models import Ocean
from spec.support.implementations import load
from spec.support.run import RUN, Run

TOPICS = ("convolution", "pooling", "activation", "loss", "optim", "step")

LIMITS = {"convolution": 3.0, "pooling": 1.5, "step": 3.0}
"""The target ratio to PyTorch's time for components with a fast form; definitions are not tuned."""

PRODUCTS_LIMIT = 1.5
"""The target ratio of a convolution's time to the time of its matrix products."""

CPU = torch.device("cpu")


def products(case: Pass) -> Step:
    """A convolution's three matrix products on windows that are already laid out; two if it is the first layer."""
    images, weight, _ = case.inputs()
    depth, outputs = weight[0].numel(), weight.shape[0]
    windows = torch.randn(BATCH * images.shape[-2] * images.shape[-1], depth)
    kernels, upstream = torch.randn(outputs, depth), torch.randn(len(windows), outputs)
    room = torch.empty_like(upstream), torch.empty_like(kernels), torch.empty_like(windows)

    def step() -> list[Tensor]:
        torch.mm(windows, kernels.T, out=room[0])
        torch.mm(upstream.T, windows, out=room[1])
        if images.requires_grad:
            torch.mm(upstream, kernels, out=room[2])
        return list(room)

    return step


def training_step(name: str) -> Step:
    """The tutorial's step on a batch of 64 with an implementation's layers, loss and optimizer."""
    implementation = load(name)
    layers = torch.nn if name == "torch" else sys.modules["reference"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = Ocean(layers=torch.nn).state_dict()
        network = Ocean(layers=layers)
        images, targets = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    network.load_state_dict(weights)
    optimizer = implementation.components["SGD"]
    optimizer = (optimizer.get() if hasattr(optimizer, "get") else optimizer)(network.parameters(), lr=1e-6)
    loss_function = layers.CrossEntropyLoss()

    def step() -> list[Tensor]:
        loss = loss_function(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    return step


def main() -> None:
    """Measure the figures requested on the command line and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs a ratio, at least 7 (default: {PAIRS})")
    parser.add_argument("--topic", choices=TOPICS, action="append", help="default: all")
    parser.add_argument(
        "--processor-time", action="store_true", help="one thread's time on the processor: for a machine that is shared"
    )
    chosen = parser.parse_args()
    if chosen.pairs < 7:
        parser.error(f"--pairs must be at least 7, got {chosen.pairs}")
    clock = time.process_time if chosen.processor_time else time.perf_counter
    if chosen.processor_time:
        torch.set_num_threads(1)
    topics = chosen.topic or TOPICS
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH}, float32; "
        f"load of the machine {os.getloadavg()[0]:.1f}\n"
    )
    keep_freed_memory()  # as in a training
    RUN.set(Run())  # the results are compared with PyTorch's, outside of pytest
    reference, pytorch = load("reference"), load("torch")
    print(HEAD)

    def report(what: str, against: str, own: Step, other: Step, limit: float | None) -> None:
        print(row(what, against, compare(own, other, pairs=chosen.pairs, clock=clock), limit), flush=True)

    everything = (test_convolution, test_pooling, test_activation, test_loss, test_optim)
    cases: list[Case] = [case for module in everything for case in module.CASES if case.topic in topics]
    for case in cases:
        own, other = timed(case, reference, CPU), timed(case, pytorch, CPU)
        case.check(own())
        report(str(case), "PyTorch", own, other, LIMITS.get(case.topic))
        if isinstance(case, Pass) and case.topic == "convolution":
            report(str(case), "its matrix products", own, products(case), PRODUCTS_LIMIT)
    if "step" in topics:
        own, other = training_step("reference"), training_step("torch")
        torch.testing.assert_close(own()[0], other()[0])  # the first step's loss
        report("training step", "PyTorch", own, other, LIMITS["step"])


if __name__ == "__main__":
    main()
