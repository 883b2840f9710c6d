"""Chapter 07: the base class of a network, `nn.Module`. All implementations use it, so none is under test."""

import pytest
import torch
from torch import Tensor, nn

from spec.support.assertions import assert_equal
from spec.support.clauses import clause


class PlusOne(nn.Module):
    """The chapter's network."""

    def forward(self, input: Tensor) -> Tensor:
        return input + 1


@clause("07.module.plus_one")
def test_network_of_the_chapter_adds_one() -> None:
    # chapter 07, line 395: output = ocean(torch.tensor(1.0))
    assert_equal(PlusOne()(torch.tensor(1.0)), torch.tensor(2.0))


@clause("07.module.forward")
def test_calling_a_network_runs_forward() -> None:
    class Recorder(nn.Module):
        def forward(self, *inputs: object, **options: object) -> object:
            return inputs, options

    assert Recorder()(1, 2, three=3) == ((1, 2), {"three": 3})


@clause("07.module.forward")
def test_calling_a_module_without_forward_raises_not_implemented() -> None:
    class Boneless(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="forward"):
        Boneless()(1)


@clause("07.module.init")
def test_assigning_a_layer_before_super_init_is_an_error() -> None:
    class Hasty(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Hasty()
