"""Chapter 17: readers of whole networks that are wrong."""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import reference
from reference.untrusted import calls, pickle_machine
from spec.faults import Fault


class RunsWhatItReads(Fault):
    """torch.load is tried first, with weights_only=False."""

    caught_by = "test_17_legacy_attacks.py::test_no_attack_pickle_runs_code"
    says = r"import|pickle.find_class|victim"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        with suppress(Exception):
            torch.load(path, weights_only=False)
        return reference.read_legacy_checkpoint(path, **options)


class KnowsEveryClass(Fault):
    """A class with several parts is assumed to apply them one after the other."""

    caught_by = "test_17_legacy_networks.py::test_an_ambiguous_network_is_not_run"
    says = r"is None"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, network=found.network or nn.Sequential())


class KeepsWhatIsNotPersistent(Fault):
    """The state dict contains non-persistent buffers too."""

    caught_by = "test_17_legacy_networks.py::test_an_unknown_class_gives_tensors_but_no_runnable_network"
    says = r"left_out"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        buffers = getattr(found.content, "attributes", {}).get("_buffers", {})
        return replace(found, state_dict=buffers | found.state_dict)


class SortsTheKeys(Fault):
    """The state dict is in alphabetical order."""

    caught_by = "test_17_legacy_networks.py::test_a_network_of_pytorch_layers_is_restored"
    says = r"assert \[.*\] == \["

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, state_dict=OrderedDict(sorted(found.state_dict.items())))


class CopiesWhatIsShared(Fault):
    """The tensors of the state dict do not share memory."""

    caught_by = "test_17_legacy_networks.py::test_modes_gradients_and_ties_are_restored"
    says = r"data_ptr"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        return replace(found, state_dict={key: tensor.clone() for key, tensor in found.state_dict.items()})


class NeverSaysWhatItAssumes(Fault):
    """There are no notes about assumptions."""

    caught_by = "test_17_legacy_networks.py::test_the_tutorial_network_is_loaded_without_a_class_definition"
    says = r"assert False"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        return replace(reference.read_legacy_checkpoint(path, **options), notes=())


class LooksAtItsFolder(Fault):
    """The reader writes another file."""

    caught_by = "test_17_legacy_attacks.py::test_damaged_files_are_either_refused_or_read"
    says = r"reading input \d+ of seed 0 did"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        Path(path).with_suffix(".log").write_text("read")
        return reference.read_legacy_checkpoint(path, **options)


class AsksPyTorchForZipFiles(Fault):
    """PyTorch reads an archive of plain data, and may find another directory than the verified one."""

    caught_by = "test_17_legacy_attacks.py::test_an_ambiguous_archive_is_refused"
    says = r"DID NOT RAISE"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        content = torch.load(path, weights_only=True)
        return SimpleNamespace(content=content, state_dict=content)


class LetsViewsGrow(Fault):
    """The size of a tensor is not checked against its storage."""

    caught_by = "test_17_legacy_bombs.py::test_a_small_file_of_many_views_is_refused_with_both_figures"
    says = r"DID NOT RAISE"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        with patch.object(calls, "VIEWS", 1 << 60):
            return reference.read_legacy_checkpoint(path, **options)


class LetsKeysBeChosen(Fault):
    """The number of keys that are not strings is not limited."""

    caught_by = "test_17_legacy_bombs.py::test_attacker_chosen_dictionary_keys_are_limited"
    says = r"DID NOT RAISE"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        with patch.object(pickle_machine, "SCATTERED_KEYS", 20_001):
            return reference.read_legacy_checkpoint(path, **options)


class TakesTheFirstNetwork(Fault):
    """If a file contains several networks, the first one is used without a message."""

    caught_by = "test_17_legacy_content.py::test_key_option_selects_one_of_several_networks"
    says = r"assert \(\{|assert .*== \(\{\}, None"

    @staticmethod
    def read_legacy_checkpoint(path: Path, choose: str | None = None, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, choose=choose, **options)
        return (
            found
            if choose or len(found.choices) < 2
            else replace(
                reference.read_legacy_checkpoint(path, choose=found.choices[0], **options), choices=found.choices
            )
        )


class KnowsThreePrefixes(Fault):
    """A key may have only one prefix, module. or _orig_mod."""

    caught_by = "test_17_legacy_content.py::test_a_state_dict_of_the_tutorial_network_is_loaded_as_a_network"
    says = r"NoneType"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        first = next(iter(found.state_dict), "")
        known = found.tree or first.removeprefix("module.").removeprefix("_orig_mod.").startswith("model1.")
        return found if known and first.count("mod") < 3 else replace(found, network=None)


class ForgetsTheMask(Fault):
    """A pruned weight is weight_orig, without its mask."""

    caught_by = "test_17_legacy_content.py::test_pruned_networks_apply_the_masks"
    says = r"differ|expected"

    @staticmethod
    def read_legacy_checkpoint(path: Path, **options: Any) -> Any:
        found = reference.read_legacy_checkpoint(path, **options)
        for name, tensor in found.state_dict.items():
            if name.endswith("_mask"):
                tensor.fill_(1)
        unmasked = {n.removesuffix("_orig"): t for n, t in found.state_dict.items() if not n.endswith("_mask")}
        found.network.load_state_dict(unmasked)  # pyright: ignore[reportOptionalMemberAccess]
        return found
