"""Chapter 17: saving and loading with the current PyTorch: both methods of the tutorial, and their pitfalls.

Only `torch.save`, `torch.load` and `load_state_dict` are under test. The project's own functions are tested in
test_17_checkpoint.py.
"""

import argparse
import copy
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import strategies as st
from torch import Tensor, nn

from spec.support.assertions import assert_equal
from spec.support.clauses import clause
from spec.support.command import Result, run
from spec.support.limits import room_for
from spec.support.strategies import given, normal, seed_all, seeds

REFUSED = "Weights only load failed"

# chapter 17, lines 1341 to 1359
OCEAN = """\
import torch
from torch import nn
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, Sequential


class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.model1 = Sequential(
            Conv2d(3, 32, 5, padding=2),
            MaxPool2d(2),
            Conv2d(32, 32, 5, padding=2),
            MaxPool2d(2),
            Conv2d(32, 64, 5, padding=2),
            MaxPool2d(2),
            Flatten(),
            Linear(1024, 64),
            Linear(64, 10)
        )

    def forward(self, x):
        x = self.model1(x)
        return x
"""


def saved(content: Any) -> bytes:
    """The file that `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def loaded(file: bytes, **options: Any) -> Any:
    """The result of `torch.load`."""
    return torch.load(io.BytesIO(file), **options)


def there_and_back(content: Any) -> Any:
    return loaded(saved(content))


def pickle_of(file: bytes) -> bytes:
    """The pickle in the archive of a saved file."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def numbers(network: nn.Module) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in network.state_dict().items()}


# Method 1: the whole network


@clause("17.saving.default_refuses", "17.saving.library_network")
def test_a_whole_network_is_refused_by_default_even_one_of_pytorch_itself() -> None:
    # chapter 17, lines 1293, 1310 and 1334: loaded directly, without an error; so it was before PyTorch 2.6
    with pytest.raises(pickle.UnpicklingError, match=REFUSED) as caught:
        loaded(saved(nn.Linear(2, 2)))
    text = str(caught.value)
    assert "In PyTorch 2.6, we changed the default value of the `weights_only` argument" in text
    assert "Unsupported global: GLOBAL torch.nn.modules.linear.Linear was not an allowed global by default" in text


@clause("17.saving.trusted")
def test_weights_only_false_loads_the_network() -> None:
    network = small()
    again = loaded(saved(network), weights_only=False)
    assert str(again) == str(network)
    assert numbers(again) == numbers(network)


@clause("17.saving.trusted")
def test_environment_variable_restores_the_old_default_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        assert isinstance(loaded(saved(small())), nn.Sequential)


@clause("17.saving.safe_globals")
def test_safe_globals_must_name_every_class_of_the_network() -> None:
    file = saved(small())
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(file))
    assert {name.rpartition(".")[2] for name in needed} == {"Sequential", "Linear", "ReLU"}
    with (
        torch.serialization.safe_globals([nn.Sequential, nn.Linear]),
        pytest.raises(pickle.UnpicklingError, match=r"GLOBAL torch\.nn\.modules\.activation\.ReLU"),
    ):
        loaded(file)
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.ReLU]):
        assert isinstance(loaded(file), nn.Sequential)
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):  # only inside the with block
        loaded(file)


class Trap:
    """An object that creates a folder when Python's own reader unpickles it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@clause("17.saving.runs_code")
def test_weights_only_false_runs_the_code_in_the_file(tmp_path: Path) -> None:
    file = saved({"weight": torch.zeros(1), "note": Trap(tmp_path / "victim")})
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL (posix|nt)\.mkdir"):
        loaded(file)
    assert not (tmp_path / "victim").exists()
    loaded(file, weights_only=False)
    assert (tmp_path / "victim").exists()


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.weight * x


@clause("17.saving.whole_network")
def test_a_pickled_network_contains_class_names_but_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # chapter 17, lines 1298 and 1307: structure and parameters
    file = saved(Doubling())
    assert b"test_17_saving" in pickle_of(file)
    assert b"Doubling" in pickle_of(file)
    assert b"def forward" not in file
    assert Doubling.forward.__code__.co_code not in file
    assert loaded(file, weights_only=False)(torch.tensor(1.0)) == 2
    monkeypatch.setattr(Doubling, "forward", lambda self, x: 3 * self.weight * x)
    assert loaded(file, weights_only=False)(torch.tensor(1.0)) == 3


@clause("17.saving.whole_network")
def test_a_whole_network_does_not_go_through_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are read from the file and `forward` from the class: they may not match if one of them has changed."""
    file = saved(Doubling())

    def another(self: Doubling) -> None:
        raise AssertionError("not called")

    monkeypatch.setattr(Doubling, "__init__", another)
    assert list(loaded(file, weights_only=False).state_dict()) == ["weight"]


@clause("17.saving.initial_values")
def test_an_untrained_network_has_parameters_too() -> None:
    # chapter 17, line 1299: they are at their initial values
    layer = nn.Conv2d(3, 32, 5)
    bound = (3 * 5 * 5) ** -0.5
    assert layer.weight.shape == (32, 3, 5, 5)
    assert layer.weight.unique().numel() > 2000
    assert layer.weight.abs().max() <= bound
    assert not torch.equal(layer.weight, nn.Conv2d(3, 32, 5).weight)  # drawn anew each time
    with torch.device("meta"):
        vgg = torchvision.models.vgg16(weights=None)
    assert sum(parameter.numel() for parameter in vgg.parameters()) == 138_357_544


# The listings on VGG16, with its real sizes, but without writing its numbers


@pytest.fixture
def vgg16() -> nn.Module:
    """VGG16 as in the listings, without allocating its 528 MB of numbers."""
    with torch.device("meta"):
        network = torchvision.models.vgg16(weights=None)
    return network.to_empty(device="cpu")


@clause("17.saving.two_files", "17.saving.no_parentheses")
def test_the_listings_write_two_files_of_527_mib(
    vgg16: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chapter 17, lines 1288, 1308 and 1326; the second without parentheses, as printed
    monkeypatch.chdir(tmp_path)
    with torch.serialization.skip_data():
        torch.save(vgg16, "vgg16_method1.pth")
        torch.save(vgg16.state_dict, "vgg16_method2.pth")
        torch.save(vgg16.state_dict(), "parameters.pth")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    floats = 4 * 138_357_544
    assert {name: size >> 20 for name, size in sizes.items()} == dict.fromkeys(
        ("vgg16_method1.pth", "vgg16_method2.pth", "parameters.pth"), 527
    )
    assert all(floats < size < floats + 2**15 for size in sizes.values())
    assert sizes["vgg16_method2.pth"] >= sizes["vgg16_method1.pth"] > sizes["parameters.pth"]


@clause("17.saving.printed_structure")
def test_method_1_prints_the_network_that_was_saved(vgg16: nn.Module, tmp_path: Path) -> None:
    # chapter 17, lines 1310 and 1311: model = torch.load("vgg16_method1.pth"); print(model)
    path = tmp_path / "vgg16_method1.pth"
    with torch.serialization.skip_data():
        torch.save(vgg16, path)
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):
        torch.load(path)
    printed = str(torch.load(path, weights_only=False, mmap=True))
    assert printed == str(vgg16)
    assert printed.startswith("VGG(\n  (features): Sequential(\n    (0): Conv2d(3, 64, kernel_size=(3, 3)")


@clause("17.saving.no_parentheses", "17.saving.recommended")
def test_method_2_as_printed_prints_a_bound_method_and_with_parentheses_32_tensors(
    vgg16: nn.Module, tmp_path: Path
) -> None:
    # chapter 17, lines 1326 to 1329: torch.save(vgg16.state_dict, …), "the same structure as method 1"
    path = tmp_path / "vgg16_method2.pth"
    with torch.serialization.skip_data():
        torch.save(vgg16.state_dict, path)
        torch.save(vgg16.state_dict(), tmp_path / "parameters.pth")
    refused = rf"{REFUSED}[^§]*GLOBAL (builtins\.)?getattr was not an allowed global"
    with pytest.raises(pickle.UnpicklingError, match=refused):
        torch.load(path)
    method = torch.load(path, weights_only=False, mmap=True)
    assert str(method) == f"<bound method Module.state_dict of {vgg16}>"
    assert method.__self__ is not vgg16
    parameters = torch.load(tmp_path / "parameters.pth", mmap=True)
    assert type(parameters) is OrderedDict
    assert len(parameters) == 32
    assert next(iter(parameters)) == "features.0.weight"


@clause("17.saving.no_parentheses")
def test_a_bound_method_is_no_state_dict() -> None:
    method = loaded(saved(small().state_dict), weights_only=False)
    with pytest.raises(TypeError, match=r"Expected state_dict to be dict-like, got <class 'method'>"):
        small().load_state_dict(method)
    network = small()
    network.load_state_dict(method())  # the remedy for such a file
    assert numbers(network) == numbers(method.__self__)


# The pitfall of method 1: the class must exist; each test uses a separate process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a program save.py, from the tutorial, has written ocean_save_method1.pth."""
    # chapter 17, lines 1362 and 1363
    program(tmp_path, "save.py", OCEAN, 'ocean = Ocean()\ntorch.save(ocean, "ocean_save_method1.pth")')
    assert execute(tmp_path, "save.py").err == ""
    return tmp_path


def program(folder: Path, name: str, *parts: str) -> None:
    beside = f"import sys; sys.path.insert(0, {str(folder)!r})"  # as Python does for a script
    (folder / name).write_text("\n".join((beside, *parts)) + "\n", encoding="utf-8")


def execute(folder: Path, name: str) -> Result:
    return run(str(folder / name), folder=folder)


LOAD = 'ocean = torch.load("ocean_save_method1.pth", weights_only=False)\nprint(ocean)'


@clause("17.saving.class_missing")
@pytest.mark.slow
def test_without_the_class_loading_fails_as_documented(folder: Path) -> None:
    # chapter 17, line 1375: AttributeError: Can't get attribute 'Ocean' on <module '__main__' from '…/save.py'>
    program(folder, "load.py", "import torch", LOAD)
    result = execute(folder, "load.py")
    path = folder / "load.py"
    assert result.status == 1
    said = f"AttributeError: Can't get attribute 'Ocean' on <module '__main__' from '{path}'>"
    assert result.err.splitlines()[-1] == said


@clause("17.saving.class_missing")
@pytest.mark.slow
def test_by_default_weights_only_refuses_before_the_class_lookup(folder: Path) -> None:
    program(folder, "load.py", "import torch", 'torch.load("ocean_save_method1.pth")')
    result = execute(folder, "load.py")
    assert result.status == 1
    assert "UnpicklingError: Weights only load failed" in result.err
    assert "Unsupported global: GLOBAL __main__.Ocean" in result.err


@clause("17.saving.class_missing")
@pytest.mark.slow
def test_the_listing_loads_from_a_folder_into_which_nothing_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chapter 17, lines 1363 and 1369: "ocean_save_method1.pth" is saved, "test/ocean_save_method1.pth" loaded
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'test/ocean_save_method1\.pth'"):
        torch.load("test/ocean_save_method1.pth")


@clause("17.saving.class_remedies")
@pytest.mark.parametrize("remedy", ["import", "paste"])
@pytest.mark.slow
def test_a_pickled_network_loads_with_the_class_in_main_and_weights_only_false(folder: Path, remedy: str) -> None:
    # chapter 17, lines 1335 and 1380: import the class or paste its definition
    if remedy == "import":
        program(folder, "model.py", OCEAN)
        program(folder, "load.py", "import torch", "from model import *", LOAD)
    else:
        program(folder, "load.py", OCEAN, LOAD)
    result = execute(folder, "load.py")
    assert result.err == ""
    assert result.out.startswith("Ocean(\n  (model1): Sequential(\n    (0): Conv2d(3, 32,")


@clause("17.saving.class_remedies")
@pytest.mark.slow
def test_the_class_definition_alone_is_not_enough_since_2_6(folder: Path) -> None:
    program(folder, "load.py", OCEAN, 'torch.load("ocean_save_method1.pth")')
    assert "UnpicklingError: Weights only load failed" in execute(folder, "load.py").err


@clause("17.saving.class_remedies")
def test_the_module_of_the_import_must_exist() -> None:
    # chapter 17, line 1385: from xxxx import *
    with pytest.raises(ModuleNotFoundError, match="No module named 'xxxx'"):
        exec("from xxxx import *", {})


@clause("17.saving.class_module")
@pytest.mark.slow
def test_a_class_from_a_module_is_looked_up_in_that_module_only(tmp_path: Path) -> None:
    """Chapter 18 saves a network with a class in model.py; copying the class, as in chapter 20, does not help."""
    (tmp_path / "there").mkdir()
    program(tmp_path / "there", "model.py", OCEAN)
    there = 'sys.path.insert(0, "there")'
    program(tmp_path, "save.py", there, "import torch", "from model import *", 'torch.save(Ocean(), "it.pth")')
    assert execute(tmp_path, "save.py").err == ""
    program(tmp_path, "load.py", OCEAN, 'torch.load("it.pth", weights_only=False)')
    assert execute(tmp_path, "load.py").err.splitlines()[-1] == "ModuleNotFoundError: No module named 'model'"


# Method 2: the state dict


@clause("17.saving.state_dict", "17.saving.recommended", "17.saving.functions")
@given(seed=seeds)
def test_a_state_dict_loads_bit_equal_without_class_and_with_weights_only(seed: int) -> None:
    # chapter 17, lines 1292, 1294, 1316 and 1321
    seed_all(seed)
    network, again = small(), small()
    parameters = there_and_back(network.state_dict())
    assert sorted(parameters) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert str(again.load_state_dict(parameters)) == "<All keys matched successfully>"
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert_equal(other, one)
    x = normal(4, 2, seed=seed, dtype=torch.float32)
    assert_equal(again(x), network(x))


@clause("17.saving.state_dict")
def test_a_state_dict_is_a_dictionary_not_a_network() -> None:
    """The listing of method 2 ends with `model = torch.load(…)`, which cannot be called."""
    with pytest.raises(TypeError, match="OrderedDict' object is not callable"):
        there_and_back(small().state_dict())(torch.zeros(1, 2))


@clause("17.saving.file")
@pytest.mark.parametrize(("zipped", "begins"), [(True, b"PK\x03\x04"), (False, pickle.dumps(0, 2)[:2])])
def test_files_of_both_formats_are_read(zipped: bool, begins: bytes) -> None:
    """Since 1.6 a file is a zip archive, for any file extension; before, it was a sequence of pickles."""
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, file, _use_new_zipfile_serialization=zipped)
    assert file.getvalue().startswith(begins)
    assert_equal(loaded(file.getvalue())["w"], torch.arange(3.0))


PLAIN: dict[str, Any] = {
    "numbers": [1, 2.5, True, None, 1j],
    "text": ["text", b"bytes"],
    "containers": {"list": [1], "tuple": (1, 2), "set": {1}, "ordered": OrderedDict(a=1)},
    "of PyTorch": [torch.float32, torch.device("cpu"), torch.Size([1])],
}
FOREIGN: dict[str, tuple[Any, str]] = {
    "a NumPy number": (np.float64(0.5), "numpy._core.multiarray.scalar"),
    "a NumPy array": (np.zeros(2), "numpy._core.multiarray._reconstruct"),
    "a path": (Path("x"), r"pathlib(\._local)?\.(Posix|Windows)Path"),
    "parsed arguments": (argparse.Namespace(lr=0.1), "argparse.Namespace"),
}


@clause("17.saving.plain")
@pytest.mark.parametrize("kind", PLAIN)
def test_the_default_reads_these_types_besides_tensors(kind: str) -> None:
    assert there_and_back(PLAIN[kind]) == PLAIN[kind]


@clause("17.saving.plain")
@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_only_refuses_common_companions_of_a_state_dict(kind: str) -> None:
    """`{"accuracy": np.float64(0.5)}` makes the file unreadable by default; use float(…) before saving."""
    value, name = FOREIGN[kind]
    with pytest.raises(pickle.UnpicklingError, match=f"Unsupported global: GLOBAL {name} was not an allowed global"):
        there_and_back({"model": small().state_dict(), "extra": value})


# Mismatches


@clause("17.saving.strict")
def test_missing_and_unexpected_keys_are_named_together() -> None:
    state = small().state_dict()
    state["2.weigth"] = state.pop("2.weight")
    with pytest.raises(RuntimeError) as caught:
        small().load_state_dict(state)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Sequential:\n"
        '\tMissing key(s) in state_dict: "2.weight". \n'
        '\tUnexpected key(s) in state_dict: "2.weigth". '
    )


@clause("17.saving.strict")
def test_strict_false_returns_the_keys_that_do_not_fit_and_raises_nothing() -> None:
    network, state = small(), small().state_dict()
    state["2.weigth"] = state.pop("2.weight")
    before = network[2].weight.detach().clone()  # pyright: ignore[reportCallIssue]
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["2.weight"], ["2.weigth"])
    assert_equal(network[2].weight.detach(), before, "the weight that was misspelled")  # pyright: ignore[reportCallIssue]
    assert_equal(network[0].weight.detach(), state["0.weight"], "the weight that was not")  # pyright: ignore[reportCallIssue]


@clause("17.saving.strict")
def test_strict_false_silently_loads_nothing_if_no_key_matches() -> None:
    network = small()
    before = numbers(network)
    network.load_state_dict({}, strict=False)
    assert numbers(network) == before


@clause("17.saving.shapes")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("shape", [(3, 1), (2, 3), (3,), ()])
def test_another_shape_is_refused_strict_or_not(shape: tuple[int, ...], strict: bool) -> None:
    state = small().state_dict() | {"0.weight": torch.zeros(shape)}
    said = rf"size mismatch for 0.weight: copying a param with shape torch.Size\(\[{', '.join(map(str, shape))}\]\) "
    with pytest.raises(RuntimeError, match=said + r"from checkpoint, the shape in current model is torch.Size\(\[3, 2"):
        small().load_state_dict(state, strict=strict)


@clause("17.saving.partial")
def test_an_error_does_not_undo_earlier_copies() -> None:
    network = small()
    state = {name: torch.full_like(value, 7) for name, value in network.state_dict().items()}
    before = network[0].weight.tolist()  # pyright: ignore[reportCallIssue]
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        network.load_state_dict(state | {"0.weight": torch.zeros(1, 1)})
    found = numbers(network)
    assert found["0.weight"] == before
    assert found["2.weight"] == [[7.0, 7.0, 7.0]]


# Copies and references


@clause("17.saving.copies")
@given(
    to=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    of=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64]),
    seed=seeds,
)
def test_numbers_are_cast_to_the_dtype_of_the_network(to: torch.dtype, of: torch.dtype, seed: int) -> None:
    network = nn.Linear(3, 2, dtype=to)
    weight = (8 * normal(2, 3, seed=seed)).to(of)
    network.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    assert_equal(network.weight.detach(), weight.to(to))


@clause("17.saving.copies")
def test_loading_keeps_the_parameter_objects() -> None:
    """An optimizer that was created before continues with the loaded numbers."""
    network = small()
    before = list(network.parameters())
    state = small().state_dict()
    network.load_state_dict(state)
    assert all(one is other for one, other in zip(network.parameters(), before, strict=True))
    state["0.weight"].zero_()
    assert not torch.equal(network[0].weight, state["0.weight"])  # pyright: ignore[reportArgumentType]


@clause("17.saving.assign")
def test_assign_keeps_the_loaded_tensors_and_dtypes() -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    state = small().double().state_dict()
    network.load_state_dict(state, assign=True)
    assert network[0].weight.dtype == torch.float64
    assert network[0].weight.data_ptr() == state["0.weight"].data_ptr()  # pyright: ignore[reportCallIssue]
    before = numbers(network)
    network(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()  # of the parameters that the network no longer has
    assert numbers(network) == before


@clause("17.saving.assign")
def test_a_network_on_the_meta_device_can_only_be_assigned_to() -> None:
    state = small().state_dict()
    with torch.device("meta"):
        network = small()
    with pytest.warns(UserWarning, match=r"which is a no-op.*assign=True"):
        network.load_state_dict(state)
    assert network[0].weight.is_meta
    network.load_state_dict(state, assign=True)
    assert numbers(network) == {name: value.tolist() for name, value in state.items()}


@clause("17.saving.alias")
def test_a_state_dict_in_memory_is_the_network_itself_not_a_copy() -> None:
    """`best = network.state_dict()` changes as the training continues; a deep copy, or saving, does not."""
    network = small()
    alias, kept, before = network.state_dict(), copy.deepcopy(network.state_dict()), numbers(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert {name: value.tolist() for name, value in alias.items()} == numbers(network) != before
    assert {name: value.tolist() for name, value in kept.items()} == before


@clause("17.saving.buffers")
def test_buffers_are_saved_unless_they_are_not_persistent() -> None:
    layer = nn.BatchNorm1d(2)
    layer.register_buffer("scratch", torch.zeros(1), persistent=False)
    layer.note = torch.zeros(1)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@clause("17.saving.buffers")
def test_outputs_differ_if_buffers_are_not_loaded() -> None:
    network, x = nn.BatchNorm1d(2), normal(8, 2, seed=0, dtype=torch.float32)
    network(x)
    again = nn.BatchNorm1d(2)
    again.load_state_dict(dict(network.named_parameters()), strict=False)
    assert not torch.equal(again.eval()(x), network.eval()(x))
    again.load_state_dict(network.state_dict())
    assert_equal(again.eval()(x), network.eval()(x))


@clause("17.saving.modes")
def test_mode_frozen_parameters_and_gradients_are_not_in_a_state_dict() -> None:
    network = small()
    network(torch.ones(1, 2)).sum().backward()
    network[0].weight.requires_grad_(False)
    network.eval()
    again = small()
    again.load_state_dict(there_and_back(network.state_dict()))
    assert again.training
    assert again[0].weight.requires_grad
    assert again[2].bias.grad is None


@clause("17.saving.modes")
def test_a_pickled_network_keeps_mode_and_requires_grad_but_no_gradients() -> None:
    network = small()
    network(torch.ones(1, 2)).sum().backward()
    network[0].weight.requires_grad_(False)
    network.eval()
    again = loaded(saved(network), weights_only=False)
    assert not again.training
    assert not again[0].weight.requires_grad
    assert again[2].weight.requires_grad
    assert network[2].bias.grad is not None
    assert again[2].bias.grad is None


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (network(torch.ones(1, 2)) ** 2).sum().backward()
        optimizer.step()


@clause("17.saving.optimizer")
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_resuming_needs_the_optimizers_state_too(with_optimizer: bool) -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    train(network, optimizer, 3)
    state = there_and_back({"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    train(network, optimizer, 3)

    again = small()
    again.load_state_dict(state["network"])
    resumed = torch.optim.SGD(again.parameters(), lr=0.01, momentum=0.9)
    if with_optimizer:
        resumed.load_state_dict(state["optimizer"])
    train(again, resumed, 3)
    assert (numbers(again) == numbers(network)) is with_optimizer


# Prefixes


@clause("17.saving.prefixes")
@pytest.mark.slow
def test_data_parallel_and_compile_put_a_prefix_before_every_name() -> None:
    assert list(nn.DataParallel(nn.Linear(1, 1)).state_dict()) == ["module.weight", "module.bias"]
    compiled = torch.compile(nn.Linear(1, 1))
    assert list(compiled.state_dict()) == ["_orig_mod.weight", "_orig_mod.bias"]  # pyright: ignore[reportFunctionMemberAccess]
    in_place = nn.Linear(1, 1)
    in_place.compile()
    assert list(in_place.state_dict()) == ["weight", "bias"]


@clause("17.saving.prefixes")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixed_keys_match_only_after_the_prefix_is_removed(prefix: str) -> None:
    network = nn.Linear(1, 1)
    state = OrderedDict((prefix + name, value) for name, value in network.state_dict().items())
    again = nn.Linear(1, 1)
    with pytest.raises(RuntimeError) as caught:
        again.load_state_dict(state)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Linear:\n"
        '\tMissing key(s) in state_dict: "weight", "bias". \n'
        f'\tUnexpected key(s) in state_dict: "{prefix}weight", "{prefix}bias". '
    )
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, prefix)  # in place  # pyright: ignore[reportAttributeAccessIssue]
    again.load_state_dict(state)
    assert numbers(again) == numbers(network)


@clause("17.saving.prefixes")
def test_the_network_inside_a_wrapper_has_no_prefix() -> None:
    parallel = nn.DataParallel(nn.Linear(1, 1))
    assert list(parallel.module.state_dict()) == ["weight", "bias"]


# Devices


def saved_on(device: str, content: Any) -> bytes:
    """The file with `device` as the recorded device of its tensors, which is the only difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        return saved(content)


@clause("17.saving.device", "20.recipe.map_location")
def test_a_gpu_file_does_not_load_without_a_gpu() -> None:
    file = saved_on("cuda:0", torch.ones(2))
    if torch.cuda.is_available():
        assert loaded(file).device == torch.device("cuda:0")
        return
    with pytest.raises(RuntimeError) as caught:
        loaded(file)
    assert str(caught.value).startswith(
        "Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False. If you are running "
        "on a CPU-only machine, please use torch.load with map_location=torch.device('cpu')"
    )


@clause("17.saving.device", "20.recipe.map_location")
@pytest.mark.parametrize(
    "map_location",
    ["cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, location: storage],
    ids=["a name", "a device", "a dictionary", "a function"],
)
def test_map_location_loads_a_gpu_file_on_the_cpu(map_location: Any) -> None:
    found = loaded(saved_on("cuda:0", {"w": torch.ones(2)}), map_location=map_location)["w"]
    assert found.device == torch.device("cpu")
    assert_equal(found, torch.ones(2))


@clause("17.saving.device")
def test_tensors_moved_before_saving_are_stored_as_cpu() -> None:
    assert b"cuda:0" in pickle_of(saved_on("cuda:0", torch.ones(2)))
    assert b"cuda" not in pickle_of(saved(torch.ones(2)))


# Tensors that share memory


@clause("17.saving.shared")
def test_shared_memory_in_one_file_is_stored_once_and_shared_again() -> None:
    once = torch.zeros(10_000)
    file = saved({"a": once, "b": once, "view": once[:2]})
    assert len(file) < 4 * 10_000 + 2_000
    again = loaded(file)
    again["a"][0] = 1
    assert again["b"][0] == again["view"][0] == 1


@clause("17.saving.shared")
def test_tensors_saved_in_two_files_do_not_share_memory() -> None:
    once = torch.zeros(3)
    first, second = there_and_back(once), there_and_back(once)
    first[0] = 1
    assert second[0] == 0


class Tied(nn.Module):
    """Two layers with one weight, like the input and output embeddings of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight


@clause("17.saving.tied")
def test_a_tied_weight_has_two_names_and_is_stored_once() -> None:
    network = Tied()
    assert list(network.state_dict()) == ["a.weight", "b.weight"]
    assert len(list(network.parameters())) == 1
    again = there_and_back(network.state_dict())
    assert again["a.weight"].data_ptr() == again["b.weight"].data_ptr()


@clause("17.saving.tied")
def test_a_tied_weight_keeps_the_last_copied_value() -> None:
    """The later layer counts, not the later entry of the dictionary; there is no warning about the difference."""
    network = Tied()
    network.load_state_dict({"b.weight": torch.ones(4, 4), "a.weight": torch.zeros(4, 4)})
    assert_equal(network.a.weight.detach(), torch.ones(4, 4))
    assert network.a.weight is network.b.weight


@clause("17.saving.tied")
def test_assign_unties_tied_weights() -> None:
    network = Tied()
    network.load_state_dict(network.state_dict(), assign=True)
    assert network.a.weight is not network.b.weight


@clause("17.saving.views")
@given(count=st.integers(1, 1000), seed=seeds)
def test_a_view_saves_the_whole_storage_and_a_clone_does_not(count: int, seed: int) -> None:
    whole = normal(5000, seed=seed, dtype=torch.float32)
    view = whole[:count]
    overhead = len(saved(torch.zeros(0)))
    kept, cured = len(saved(view)), len(saved(view.clone()))
    assert 4 * 5000 <= kept <= 4 * 5000 + overhead + 256
    assert 4 * count <= cured <= 4 * count + overhead + 256
    assert_equal(there_and_back(view), view)
    assert there_and_back(view).untyped_storage().nbytes() == 4 * 5000


# Saving is not atomic, and loading does not verify


@clause("17.saving.not_atomic")
def test_a_failed_torch_save_destroys_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(small().state_dict(), path)
    with pytest.raises(AttributeError, match="local object"):
        torch.save({"network": small().state_dict(), "schedule": lambda step: 0.1}, path)
    with pytest.raises(RuntimeError, match="PytorchStreamReader failed"):
        torch.load(path)


@clause("17.saving.not_atomic")
def test_torch_save_on_a_full_disk_leaves_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(torch.zeros(10), path)
    with room_for(50_000), pytest.raises(RuntimeError, match="unexpected pos"):
        torch.save(torch.zeros(100_000), path)
    assert path.stat().st_size == 50_000
    with pytest.raises((RuntimeError, OSError)):
        torch.load(path)


@clause("17.saving.unverified")
def test_a_changed_bit_in_the_weights_is_not_noticed() -> None:
    """The archive has checksums, which `torch.load` does not verify, unlike `zipfile`."""
    file = bytearray(saved(torch.arange(100.0)))
    start = bytes(file).index(torch.arange(100.0).numpy().tobytes())
    file[start + 4 * 50 + 2] ^= 1
    again = loaded(bytes(file))
    assert (again != torch.arange(100.0)).nonzero().tolist() == [[50]]
    with zipfile.ZipFile(io.BytesIO(bytes(file))) as archive:
        assert archive.testzip() == "archive/data/0"
