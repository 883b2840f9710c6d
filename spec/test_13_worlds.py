"""Chapters 08 to 14: every component under other modes, as a copy, and in a second call.

The harness (`spec/support/harness.py`) calls every component; the environment of the call differs from test to test.
The oracle is the formula, or the same call in the ordinary environment.
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import reference
from spec.support.assertions import Tolerance, assert_close, assert_equal, rejects
from spec.support.clauses import clause
from spec.support.harness import FEW, HUNDREDS, SUBJECTS, Subject, Tensors, numbers, results
from spec.support.run import current

every_component = pytest.mark.parametrize("component", SUBJECTS, indirect=True)
LAYERS = [name for name, subject in SUBJECTS.items() if subject.make is not None]
every_layer = pytest.mark.parametrize("component", LAYERS, indirect=True)
LEARNING = [
    *("Conv2d", "Linear", "BatchNorm2d", "LayerNorm", "Embedding", "RNN", "LSTM", "GRU", "MultiheadAttention"),
    "TransformerEncoderLayer",
]
"""The layers with parameters, which have the arguments `device` and `dtype`."""
ALIASES = ("flatten", "Flatten", "dropout", "Dropout")
"""The components that return a view of the input, or the input itself; dropout in evaluation."""
every_learning_layer = pytest.mark.parametrize("component", LEARNING, indirect=True)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The calls are those of the harness; a failure names the component."""
    with current().trace.off():
        yield


def given(subject: Subject, size: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """The tensors of a call on the default device."""
    device = torch.get_default_device()
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in subject.given(size).items()
    }


def outputs(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor)]


def close(found: Any, right: Any, what: str, dtype: torch.dtype = torch.float64) -> None:
    """Up to 4,096 roundings of numbers as large as the largest."""
    __tracebackhide__ = True
    ours, theirs = outputs(found), outputs(right)
    assert len(ours) == len(theirs), what
    for one, other in zip(ours, theirs, strict=True):
        largest = 1 + float(other.detach().abs().max()) if other.numel() else 1.0
        allowed = Tolerance(4096 * torch.finfo(dtype).eps * largest, f"4,096 roundings to {dtype}")
        assert_close(one.detach().cpu(), other.detach().cpu().to(one.dtype), allowed, what)


def formula(subject: Subject, tensors: Tensors, module: Any = None, size: int = FEW) -> Any:
    """The results of the oracle with the current parameters of a layer."""
    parameters = {} if module is None else {name: p.detach().cpu() for name, p in module.named_parameters()}
    return subject.oracle({name: tensor.detach().cpu() for name, tensor in tensors.items()} | parameters, size)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@clause("13.world.modes")
@every_component
def test_results_under_no_grad_are_equal_and_need_no_gradient(component: Any) -> None:
    subject = SUBJECTS[component.name]
    module = component if subject.make is None else subject.layer(component, FEW)
    tensors = given(subject, FEW)
    for name, tensor in tensors.items():
        tensor.requires_grad_(tensor.is_floating_point() and name not in subject.fixed)
    right = formula(subject, tensors, None if subject.make is None else module)
    for mode, entered in MODES.items():
        if mode == "inference_mode" and torch.get_default_device().type == "simulated":
            continue  # its tensors are wrappers, which inference mode does not support
        with entered():
            found = subject.call(module, tensors, FEW)
        if component.name not in ALIASES:  # a view of a tensor that requires a gradient requires one
            needing = [output for output in outputs(found) if output.requires_grad]
            assert not needing, f"under {mode} the result of {component.name} needs a gradient"
        close(found, right, f"{component.name}: the result under {mode}")
        again = [output for output in outputs(subject.call(module, tensors, FEW)) if output.is_floating_point()]
        assert again[0].requires_grad, f"after {mode} the result of {component.name} needs no gradient any more"


READ_BY_THE_HARNESS = {"layer_norm": ["input"], "batch_norm": ["running_mean", "running_var"]}
"""The arguments that the calls of the harness read; they must be tensors."""


@clause("13.world.no_tensor")
@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "Sequential"])
def test_the_reference_rejects_an_argument_that_is_no_tensor(name: str) -> None:
    subject = SUBJECTS[name]
    call, _ = subject.prepare(getattr(reference, name), FEW, torch.float64)
    tensors = given(subject, FEW)
    for argument, tensor in tensors.items():
        if argument not in READ_BY_THE_HARNESS.get(name, []):
            of = argument if subject.make is None else r"\w+"  # a layer may call its argument otherwise
            with rejects(rf": {of}\b.* must be a tensor, got list$"):
                call(tensors | {argument: tensor.tolist()})  # pyright: ignore[reportArgumentType]


@clause("13.world.needs")
@every_component
def test_gradient_of_each_argument_alone_equals_the_joint_gradient(component: Any) -> None:
    """Only the input, the weight or the bias requires a gradient: frozen layers pass the gradient on to their input."""
    subject = SUBJECTS[component.name]
    call, parameters = subject.prepare(component, FEW, torch.float64)
    tensors = given(subject, FEW)
    every = results(call, tensors, parameters, subject.fixed)
    leaves = [name for name, tensor in tensors.items() if tensor.is_floating_point() and name not in subject.fixed]
    for alone in (*leaves, *parameters):
        fixed = [name for name in tensors if name != alone]
        for name, parameter in parameters.items():
            parameter.requires_grad_(name == alone)
            parameter.grad = None
        found = results(call, tensors, parameters, fixed)
        key = f"the gradient of {alone}"
        assert key in found, f"{component.name}: {alone} alone needs a gradient, and the result does not"
        assert [name for name in found if name.startswith("the gradient")] == [key]
        close(found[key], every[key], f"{component.name}: {key}, which alone needs one,")
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    found = outputs(call(tensors))
    assert not any(output.requires_grad for output in found), (
        f"{component.name}: nothing needs a gradient, but the result"
    )


@clause("13.world.inputs")
@every_component
def test_a_call_changes_no_argument_and_no_parameter(component: Any) -> None:
    subject = SUBJECTS[component.name]
    call, parameters = subject.prepare(component, HUNDREDS, torch.float64)
    tensors = given(subject, HUNDREDS)
    held = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    results(call, tensors, parameters, subject.fixed)
    for name, tensor in tensors.items():
        assert_equal(tensor, held[name], f"{name} after the call")
        assert tensor._version == 0, f"{name} was written to"
        assert tensor.grad is None, f"{name} got a gradient that nobody asked for"
    for name, parameter in parameters.items():
        assert_equal(parameter.detach(), weights[name], f"{name} after the call")


def memory(tensor: Tensor) -> int:
    """The address of the numbers; those of the simulated device are in its `raw` tensor."""
    return getattr(tensor, "raw", tensor).untyped_storage().data_ptr()


@clause("13.world.views")
@every_component
def test_results_own_memory_unless_views(component: Any) -> None:
    subject = SUBJECTS[component.name]
    call, parameters = subject.prepare(component, FEW, torch.float64)
    tensors = given(subject, FEW)
    found = outputs(call(tensors))
    for name, tensor in (tensors | parameters).items():
        shared = [i for i, output in enumerate(found) if memory(output) == memory(tensor)]
        if component.name in ALIASES:
            assert shared == [0], f"{component.name}: the result is a copy, not a view of {name}"
        else:
            assert shared == [], f"{component.name}: result {shared} shares its memory with {name}"


@clause("13.world.views")
def test_identity_operations_return_a_copy(
    max_pool2d: Any, avg_pool2d: Any, adaptive_avg_pool2d: Any, relu: Any, leaky_relu: Any
) -> None:
    x = numbers(2, 3, 4, 5).abs()
    calls = {
        "max_pool2d": max_pool2d(x, 1),
        "avg_pool2d": avg_pool2d(x, 1),
        "adaptive_avg_pool2d": adaptive_avg_pool2d(x, (None, 5)),
        "relu": relu(x),
        "leaky_relu": leaky_relu(x, 1.0),
    }
    for name, found in calls.items():
        assert_equal(found, x, name)
        assert memory(found) != memory(x), f"{name} gives a view of its input"


@clause("13.world.views")
def test_empty_sequential_returns_the_input_object(Sequential: Any) -> None:
    x = numbers(3)
    assert Sequential()(x) is x


@clause("13.world.views")
def test_flatten_copies_only_if_no_view_is_possible(flatten: Any) -> None:
    x = numbers(2, 3, 4)
    assert flatten(x[0, 0]) is not None
    assert memory(flatten(x, 1)) == memory(x)
    assert memory(flatten(x.transpose(0, 1), 0, 1)) != memory(x)
    assert memory(flatten(x.transpose(0, 1), 2)) == memory(x), "one dimension is flat as it is"


@clause("13.world.other_sizes")
@every_component
def test_a_second_call_with_another_size_uses_no_cached_result(component: Any) -> None:
    """Calls with more rows, fewer rows, and other numbers do not use data of an earlier call."""
    subject = SUBJECTS[component.name]
    module = component if subject.make is None else subject.layer(component, FEW)
    first = given(subject, FEW)
    constant = {"weight", "bias", "running_mean", "running_var"}
    pairwise = component.name == "scaled_dot_product_attention"

    def changed(rows: Callable[[Tensor], Tensor]) -> Tensors:
        return {name: tensor if name in constant else rows(tensor) for name, tensor in first.items()}

    calls = {
        "the first call": first,
        "a call with three times the rows": changed(lambda x: torch.cat([x, x.flip(0), x])),
        "a call with one row less": changed(lambda x: x[1:]) if not pairwise else changed(lambda x: x[:, :-1]),
        "a call with other numbers": changed(lambda x: x / 2 + 1 if x.is_floating_point() else x.flip(0)),
        "the first call, repeated,": first,
    }
    for what, tensors in calls.items():
        if "less" in what and component.name in ("batch_norm", "BatchNorm2d"):
            continue  # a single sample
        found = subject.call(module, tensors, FEW)
        close(found, formula(subject, tensors, None if subject.make is None else module), f"{component.name}: {what}")


@clause("13.world.randomness")
@every_component
def test_a_call_without_dropout_draws_no_random_numbers(component: Any) -> None:
    subject = SUBJECTS[component.name]
    call, parameters = subject.prepare(component, FEW, torch.float64)
    before = torch.get_rng_state()
    results(call, given(subject, FEW), parameters, subject.fixed)
    assert torch.equal(torch.get_rng_state(), before), f"{component.name} draws random numbers"


@clause("13.world.randomness")
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_in_evaluation_draws_no_random_numbers(Dropout: Any, p: float) -> None:
    before = torch.get_rng_state()
    Dropout(p).eval()(numbers(5))
    Dropout(0.0).train()(numbers(5))
    assert torch.equal(torch.get_rng_state(), before)


@clause("13.world.start_draws")
@every_learning_layer
def test_initialization_draws_equal_those_of_pytorch(component: Any) -> None:
    """The random numbers drawn after the creation are the same as after the creation of PyTorch's layer."""
    subject, states = SUBJECTS[component.name], []
    assert subject.make is not None
    for kind in (component, getattr(nn, component.name)):
        torch.manual_seed(5)
        subject.make(kind, FEW)
        states.append(torch.rand(3))
    assert_equal(states[0], states[1], f"what is drawn after a new {component.name}")


@clause("13.world.instances")
@every_learning_layer
def test_two_layers_share_no_memory(component: Any) -> None:
    subject = SUBJECTS[component.name]
    one, other = subject.layer(component, FEW), subject.layer(component, FEW)
    places = [{memory(t) for t in (*m.parameters(), *m.buffers())} for m in (one, other)]
    assert not places[0] & places[1], "parameters or buffers of two layers have the same memory"
    tensors = given(subject, FEW)
    with torch.no_grad():
        before = [output.clone() for output in outputs(subject.call(one, tensors, FEW))]
        for parameter in other.parameters():
            parameter.add_(1)
        subject.call(other, tensors, FEW)
        other.train(not other.training)
        close(subject.call(one, tensors, FEW), before, "the result after another layer was changed")
    assert one.training == subject.training


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {"deepcopy": copy.deepcopy, "pickle": pickled}


@clause("13.world.copies")
@every_layer
def test_deepcopy_of_a_layer_is_equal_and_shares_no_memory(component: Any) -> None:
    for way in COPIES:
        copied(component, way)


def copied(component: Any, way: str) -> None:
    """Check one way to copy."""
    __tracebackhide__ = True
    subject = SUBJECTS[component.name]
    module = subject.layer(component, FEW)
    tensors = given(subject, FEW)
    right = [output.detach().clone() for output in outputs(subject.call(module, tensors, FEW))]
    twin = COPIES[way](module)
    assert type(twin) is type(module)
    assert repr(twin) == repr(module)
    assert twin.training == module.training
    assert {memory(t) for t in twin.state_dict().values()}.isdisjoint({memory(t) for t in module.state_dict().values()})
    for one, other in zip(outputs(subject.call(twin, tensors, FEW)), right, strict=True):
        assert_equal(one.detach(), other, f"the result of the copy by {way}")
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    for one, other in zip(outputs(subject.call(module, tensors, FEW)), right, strict=True):
        assert_equal(one.detach(), other, "the result after the copy was changed")


@clause("13.world.copies")
@every_learning_layer
def test_loaded_layer_equals_the_saved_one_and_shares_no_memory(component: Any) -> None:
    subject = SUBJECTS[component.name]
    assert subject.make is not None
    module = subject.layer(component, FEW)
    tensors = given(subject, FEW)
    subject.call(module, tensors, FEW)
    saved = module.state_dict()
    twin = subject.make(component, FEW).to(torch.float64).train(module.training)
    twin.load_state_dict(saved)
    for name, tensor in twin.state_dict().items():
        assert_equal(tensor, saved[name], f"{name} after load_state_dict")
        assert memory(tensor) != memory(saved[name]), f"{name} is shared with the state that was loaded"
    close(subject.call(twin, tensors, FEW), subject.call(module, tensors, FEW), "the result of the loaded layer")


@clause("13.world.dtypes")
@every_learning_layer
def test_layers_have_the_requested_dtype(component: Any) -> None:
    for way in ("half", "bfloat16", "double", "to", "dtype=", "default dtype"):
        typed(component, way)


def typed(component: Any, way: str) -> None:
    """Check one way to choose a dtype."""
    __tracebackhide__ = True
    subject = SUBJECTS[component.name]
    assert subject.make is not None
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(way, torch.float64)
    if way == "dtype=":
        module = subject.make(component, FEW, dtype=dtype)
    elif way == "default dtype":
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            module = subject.make(component, FEW)
        finally:
            torch.set_default_dtype(before)
    else:
        module = subject.make(component, FEW)
        module = module.to(dtype) if way == "to" else getattr(module, way)()
    wrong = {n: t.dtype for n, t in module.state_dict().items() if t.is_floating_point() and t.dtype != dtype}
    assert not wrong, f"{way}: not in {dtype}: {wrong}"
    whole = {n: t.dtype for n, t in module.state_dict().items() if not t.is_floating_point() and t.dtype != torch.int64}
    assert not whole, f"{way}: not whole numbers any more: {whole}"
    found = outputs(subject.call(module.train(subject.training), given(subject, FEW, dtype), FEW))
    assert {output.dtype for output in found} == {dtype}


@clause("13.world.meta")
@every_learning_layer
@pytest.mark.parametrize("way", ["device=", "to"])
def test_a_layer_on_the_meta_device_has_shapes_and_no_numbers(component: Any, way: str) -> None:
    subject = SUBJECTS[component.name]
    assert subject.make is not None
    before = torch.get_rng_state()
    module = (
        subject.make(component, FEW, device="meta") if way == "device=" else subject.make(component, FEW).to("meta")
    )
    if way == "device=":
        assert torch.equal(torch.get_rng_state(), before), "random numbers are drawn for numbers that there are not"
    pattern = subject.make(component, FEW)
    here = {name: tensor for name, tensor in module.state_dict().items() if tensor.device.type != "meta"}
    assert not here, f"not on the meta device: {list(here)}"
    assert {n: t.shape for n, t in module.state_dict().items()} == {n: t.shape for n, t in pattern.state_dict().items()}
    module.to_empty(device=torch.get_default_device())
    module.load_state_dict(pattern.state_dict())
    tensors = given(subject, FEW, torch.float32)
    module, pattern = module.train(subject.training), pattern.train(subject.training)
    close(subject.call(module, tensors, FEW), subject.call(pattern, tensors, FEW), "the result", torch.float32)


RESETTING = [name for name in LEARNING if name not in ("MultiheadAttention", "TransformerEncoderLayer")]


@clause("13.world.reset")
@pytest.mark.parametrize("component", RESETTING, indirect=True)
def test_reset_parameters_gives_the_state_of_a_new_layer(component: Any) -> None:
    subject = SUBJECTS[component.name]
    assert subject.make is not None
    module: Any = subject.layer(component, FEW, torch.float32)
    subject.call(module, given(subject, FEW, torch.float32), FEW)
    torch.manual_seed(7)
    fresh = subject.make(component, FEW)
    torch.manual_seed(7)
    module.reset_parameters()
    for name, tensor in module.state_dict().items():
        assert_equal(tensor, fresh.state_dict()[name], f"{name} after reset_parameters")
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in module.parameters())


SAME_IN_TRAINING = [name for name in LAYERS if name not in ("Dropout", "BatchNorm2d", "TransformerEncoderLayer")]


@clause("13.world.training")
@pytest.mark.parametrize("component", SAME_IN_TRAINING, indirect=True)
def test_a_layer_without_dropout_gives_the_same_in_training_and_evaluation(component: Any) -> None:
    subject = SUBJECTS[component.name]
    module = subject.layer(component, FEW)
    tensors = given(subject, FEW)
    found = []
    for mode in (True, False, True):
        assert module.train(mode) is module
        assert all(part.training is mode for part in module.modules())
        found.append(subject.call(module, tensors, FEW))
    close(found[1], found[0], "the result in evaluation")
    close(found[2], found[0], "the result in training again")


@clause("13.world.memory")
@every_component
def test_memory_of_a_call_is_released_with_the_result(component: Any) -> None:
    if torch.get_default_device().type != "cpu":
        pytest.skip("the memory is a NumPy array's")
    subject = SUBJECTS[component.name]
    call, _ = subject.prepare(component, FEW, torch.float64)
    ends: list[weakref.ref[Any]] = []

    def use() -> None:
        given = subject.given(FEW)
        arrays = {name: tensor.numpy().copy() for name, tensor in given.items()}
        ends.extend(weakref.ref(array) for array in arrays.values())
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        leaves = {
            name: tensor.requires_grad_(tensor.is_floating_point() and name not in subject.fixed)
            for name, tensor in tensors.items()
        }
        found = outputs(call(leaves))
        flowing = [output for output in found if output.requires_grad]
        torch.autograd.backward(flowing, [torch.ones_like(output) for output in flowing])
        ends.extend(weakref.ref(output) for output in found)

    use()
    if any(end() is not None for end in ends):  # a reference cycle is freed by the garbage collector
        gc.collect()
    kept = [i for i, end in enumerate(ends) if end() is not None]
    assert not kept, f"{component.name}: of the inputs and results {kept} of {len(ends)} are still in memory"


LOWER = ("conv2d", "Conv2d", "linear", "Linear", "scaled_dot_product_attention", "MultiheadAttention", "Sequential")
"""The components in bfloat16 under autocast: convolutions, matrix products and components that consist of them."""


@clause("13.world.autocast")
@every_component
def test_autocast_computes_convolutions_and_matrix_products_in_bfloat16(component: Any) -> None:
    device = torch.get_default_device().type
    if device == "simulated":
        pytest.skip("PyTorch knows no autocast of the simulated device")
    subject = SUBJECTS[component.name]
    module = component if subject.make is None else subject.layer(component, FEW, torch.float32)
    tensors = given(subject, FEW, torch.float32)
    for name, tensor in tensors.items():
        tensor.requires_grad_(tensor.is_floating_point() and name not in subject.fixed)
    try:
        with torch.autocast(device, torch.bfloat16):
            found = outputs(subject.call(module, tensors, FEW))
    except RuntimeError as error:
        if "could not create a primitive descriptor" in str(error):
            pytest.xfail("oneDNN cannot make the LSTM of PyTorch in bfloat16 on this processor")
        raise
    right = outputs(formula(subject, {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()},
        None if subject.make is None else copy.deepcopy(module).double()))  # fmt: skip
    for one, other in zip(found, right, strict=True):
        if one.is_floating_point():
            largest = float(other.abs().max())
            allowed = Tolerance(64 * torch.finfo(torch.bfloat16).eps * largest, "64 roundings to bfloat16")
            assert_close(one.detach().cpu().double(), other.double(), allowed, f"{component.name} under autocast")
    wanted = torch.bfloat16 if component.name in LOWER else torch.float32
    if component.name not in ("RNN", "LSTM", "GRU", "TransformerEncoderLayer"):  # these consist of both kinds
        assert found[0].dtype == wanted, f"{component.name} under autocast is in {found[0].dtype}"
    flowing = [output for output in found if output.requires_grad]
    torch.autograd.backward(flowing, [torch.ones_like(output) for output in flowing])
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            assert tensor.grad is not None, f"{component.name} under autocast: {name} has no gradient"
            assert tensor.grad.dtype == torch.float32
