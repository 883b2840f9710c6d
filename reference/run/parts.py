"""The parts of a training: network, loss, optimizer, loaders and schedule, built from the settings."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

import reference
from reference.data.resident import Resident, ResidentLoader
from reference.distributed import Group, LossFunction
from reference.models import Ocean
from reference.optim import SGD, Adam, AdamW, Optimizer
from reference.recipes import FallingRate, Muon, Vary, patches, whiten
from reference.run.settings import Settings
from reference.scaling import ScaledOptimizer
from reference.training import Observer, Progress, fit

LAYERS: dict[str, Any] = {"torch": nn, "reference": reference}
"""For each `--impl`, the namespace of its layers and its loss."""


@dataclass(frozen=True)
class Plan:
    """The parts of a training: network, loss, optimizer, loaders and schedule.

    Attributes:
        network: the network, on its device.
        loss_function: the mean loss of a batch.
        optimizer: the optimizer of the network's trainable parameters.
        train_loader: the training batches of an epoch.
        test_loader: the test batches.
        epochs: total number of epochs, including completed ones.
        precision: the dtype of convolutions and matrix products.
        schedule: sets the learning rate before each step; None leaves it constant.
        scaled: wraps `optimizer` for float16 gradients; None for the other precisions.
    """

    network: nn.Module
    loss_function: LossFunction
    optimizer: Optimizer
    train_loader: ResidentLoader
    test_loader: ResidentLoader
    epochs: int
    precision: torch.dtype
    schedule: FallingRate | None
    scaled: ScaledOptimizer | None

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        if self.schedule is None:
            return float(self.optimizer.param_groups[0]["lr"])
        return self.schedule.rate(self.optimizer.param_groups[0]["initial_lr"], step - 1)

    def fit(self, group: Group, progress: Progress, observer: Observer) -> Progress:
        """Train, starting from `progress`, together with the other processes of `group`."""
        return fit(
            self.network,
            self.loss_function,
            self.scaled or self.optimizer,
            self.train_loader,
            self.test_loader,
            epochs=self.epochs,
            progress=progress,
            observer=observer,
            precision=self.precision,
            before_step=self.schedule,
            loss_scale=None if self.scaled is None else self.scaled.factor,
            group=group,
        )


def prepare(
    settings: Settings,
    train_set: Resident,
    test_set: Resident,
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> Plan:
    """Build the plan of a training from the settings, on `device` and computing in `precision`."""
    network = Ocean(classes=len(train_set.classes), layers=LAYERS[settings.impl])
    # channels last is the fastest layout for convolutions
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if settings.whiten:
        weight, bias = islice(network.parameters(), 2)
        whiten(weight, bias, patches(train_set.images[:500], weight.shape[-1]).to(device))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: Optimizer
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    if settings.optimizer == "sgd":
        optimizer = SGD(trained, rate, momentum, weight_decay=decay)
    elif settings.optimizer == "muon":
        optimizer = Muon(trained, rate, momentum, decay)
    else:
        optimizer = {"adam": Adam, "adamw": AdamW}[settings.optimizer](trained, rate, weight_decay=decay)
    vary = Vary(settings.mirror, settings.shift) if settings.mirror or settings.shift else None
    order = torch.Generator().manual_seed(settings.seed)
    train_loader = ResidentLoader(
        train_set, settings.batch_size, settings.shuffle, generator=order, device=device, vary=vary
    )
    test_loader = ResidentLoader(test_set, settings.batch_size, device=device)
    falling = settings.schedule == "falling"
    return Plan(
        network=network,
        loss_function=LAYERS[settings.impl].CrossEntropyLoss(),
        optimizer=optimizer,
        train_loader=train_loader,
        test_loader=test_loader,
        epochs=settings.epochs,
        precision=precision,
        schedule=FallingRate(optimizer, steps=settings.epochs * len(train_loader)) if falling else None,
        scaled=ScaledOptimizer(optimizer, device) if precision == torch.float16 else None,
    )
