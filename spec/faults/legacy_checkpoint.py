"""Chapter 17: readers of whole networks that are wrong."""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reference
from spec.faults import Fault

FILE = "test_17_legacy_checkpoint.py"


class RunsWhatItReads(Fault):
    """PyTorch is asked first, and told to trust the file."""

    caught_by = f"{FILE}::test_no_trick_runs_anything"
    says = r"import|pickle.find_class|victim"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        with suppress(Exception):
            torch.load(path, weights_only=False)
        return reference.read_legacy_checkpoint(path, **options)


class KnowsEveryClass(Fault):
    """A class with several parts is taken to apply them in turn."""

    caught_by = f"{FILE}::test_a_network_that_might_be_another_one_is_not_run"
    says = r"is None"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, network=found.network or nn.Sequential())


class KeepsWhatIsNotPersistent(Fault):
    """Every buffer is put into the state dict."""

    caught_by = f"{FILE}::test_of_an_unknown_class_there_is_all_but_the_working_network"
    says = r"left_out"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        buffers = getattr(found.content, "attributes", {}).get("_buffers", {})
        return replace(found, state_dict=buffers | found.state_dict)


class SortsTheKeys(Fault):
    """The state dict is in the order of the alphabet."""

    caught_by = f"{FILE}::test_a_network_of_pytorch_s_layers_comes_back_whole"
    says = r"assert \[.*\] == \["

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, state_dict=OrderedDict(sorted(found.state_dict.items())))


class CopiesWhatIsShared(Fault):
    """Each tensor of the state dict gets memory of its own."""

    caught_by = f"{FILE}::test_modes_gradients_and_ties_are_as_they_were_saved"
    says = r"data_ptr"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, state_dict={key: tensor.clone() for key, tensor in found.state_dict.items()})


class NeverSaysWhatItAssumes(Fault):
    """No notes."""

    caught_by = f"{FILE}::test_the_tutorial_s_network_needs_no_class"
    says = r"assert False"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        return replace(reference.read_legacy_checkpoint(path, **options), notes=())


class LooksAtItsFolder(Fault):
    """Something beside the file is written."""

    caught_by = f"{FILE}::test_damaged_files_are_refused_or_read_and_nothing_else"
    says = r"reading input \d+ of seed 0 did"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        Path(path).with_suffix(".log").write_text("read")
        return reference.read_legacy_checkpoint(path, **options)
