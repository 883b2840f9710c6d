"""Chapter 13: a network of consecutive layers, `Sequential`, and the tutorial's network, `Ocean`."""

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from spec.support.assertions import assert_equal, rejects
from spec.support.clauses import clause
from spec.support.strategies import given, whole

Layer = Callable[..., Any]

# chapter 13, line 918: what print(ocean) shows
PRINTED = """\
Ocean(
  (model1): Sequential(
    (0): Conv2d(3, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (1): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (2): Conv2d(32, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (3): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (4): Conv2d(32, 64, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (5): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (6): Flatten(start_dim=1, end_dim=-1)
    (7): Linear(in_features=1024, out_features=64, bias=True)
    (8): Linear(in_features=64, out_features=10, bias=True)
  )
)"""

# chapter 13, line 839: the sizes in the image, layer by layer
SHAPES = [(32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4), (1024,), (64,), (10,)]


class Network(nn.Module):
    """The chapter's listing, lines 897 to 915, with the layers under test."""

    def __init__(self, Sequential: Layer, Conv2d: Layer, MaxPool2d: Layer, Flatten: Layer, Linear: Layer) -> None:
        super().__init__()
        self.model1 = Sequential(
            Conv2d(3, 32, kernel_size=5, padding=2),
            MaxPool2d(kernel_size=2),
            Conv2d(32, 32, kernel_size=5, padding=2),
            MaxPool2d(kernel_size=2),
            Conv2d(32, 64, kernel_size=5, padding=2),
            MaxPool2d(kernel_size=2),
            Flatten(),
            Linear(1024, 64),
            Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model1(x)


Network.__name__ = "Ocean"  # as it prints


@pytest.fixture
def network(Sequential: Layer, Conv2d: Layer, MaxPool2d: Layer, Flatten: Layer, Linear: Layer) -> Network:
    return Network(Sequential, Conv2d, MaxPool2d, Flatten, Linear)


# The values


@clause("13.network.printed")
def test_ocean_prints_as_documented(network: Network) -> None:
    assert str(network) == PRINTED


@clause("13.network.shapes", "13.network.output")
def test_the_shape_after_each_layer_is_the_documented_one(network: Network) -> None:
    # chapter 13, lines 839, 885 and 922
    values, found = torch.ones(64, 3, 32, 32), []
    for layer in network.model1:
        values = layer(values)
        found.append(tuple(values.shape))
    assert found == [(64, *shape) for shape in SHAPES]


@clause("13.network.1024")
def test_the_first_linear_layer_takes_64_times_4_times_4_numbers(network: Network) -> None:
    # chapter 13, line 865
    assert network.model1[7].in_features == 64 * 4 * 4 == 1024


@clause("13.network.1024")
@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (32, 39), (39, 39), (16, 64), (8, 128), (135, 15)], ids=lambda side: str(side)
)
def test_an_image_fits_if_height_over_8_times_width_over_8_is_16(network: Network, height: int, width: int) -> None:
    # three poolings by 2, each rounded down: 64 channels · 16 positions = 1024
    assert (height // 8) * (width // 8) == 16
    assert network(torch.ones(1, 3, height, width)).shape == (1, 10)


@clause("13.network.1024")
@pytest.mark.parametrize(("height", "width"), [(31, 32), (32, 40), (16, 63), (64, 64)], ids=lambda side: str(side))
def test_images_of_other_sizes_do_not_fit_the_first_linear_layer(network: Network, height: int, width: int) -> None:
    assert (height // 8) * (width // 8) != 16
    with rejects("1024", "input", "in_features"):
        network(torch.ones(1, 3, height, width))


@clause("13.network.32_kernels")
def test_32_kernels_of_3x5x5_with_padding_make_32_maps_of_32x32(Conv2d: Layer) -> None:
    # chapter 13, line 842
    layer = Conv2d(3, 32, 5, padding=2)
    assert layer.weight.shape == (32, 3, 5, 5)
    assert layer(torch.ones(3, 32, 32)).shape == (32, 32, 32)


@clause("13.network.32_kernels")
def test_5x5_kernels_without_padding_make_28x28_maps(Conv2d: Layer) -> None:
    assert Conv2d(3, 32, 5)(torch.ones(3, 32, 32)).shape == (32, 28, 28)


def graph_of(network: nn.Module, folder: Path) -> GraphDef:
    """The events of add_graph, read by TensorBoard's own reader."""
    with SummaryWriter(folder) as writer:
        writer.add_graph(network, torch.ones(1, 3, 32, 32))  # chapter 13, line 925
    graph = EventAccumulator(str(folder)).Reload().Graph()
    assert isinstance(graph, GraphDef)
    return graph


KINDS = ("Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Linear", "Linear")
LAYERS = [f"{kind}[{i}]" for i, kind in enumerate(KINDS)]


@pytest.fixture(scope="session")
def graph(
    Sequential: Layer, Conv2d: Layer, MaxPool2d: Layer, Flatten: Layer, Linear: Layer,
    tmp_path_factory: pytest.TempPathFactory,
) -> GraphDef:  # fmt: skip
    """The nodes of the network."""
    with warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning):  # one may look at shapes
        return graph_of(Network(Sequential, Conv2d, MaxPool2d, Flatten, Linear), tmp_path_factory.mktemp("graph"))


@clause("13.network.graph")
def test_the_graph_on_the_board_has_the_nine_layers(graph: GraphDef) -> None:
    # chapter 13, line 925
    names = {part for node in graph.node for part in node.name.split("/")}
    assert {*LAYERS} <= names


@clause("13.network.graph_chain")
def test_the_graph_on_the_board_leads_from_each_layer_to_the_next(graph: GraphDef) -> None:
    # chapter 13, lines 931 and 935: input, Ocean, output; zoomed into Sequential, nine nodes in a row
    nodes = graph.node
    inside = {node.name: next((part for part in node.name.split("/") if part in LAYERS), "") for node in nodes}
    inside |= {node.name: node.name.split("/")[0] for node in nodes if node.name.startswith(("input/", "output/"))}
    numbers = ("prim::Constant", "prim::GetAttr", "prim::ListConstruct")  # settings, which layers share, and weights
    settings = {node.name for node in nodes if node.op in numbers}
    feeds = {(inside.get(source, ""), inside[node.name]) for node in nodes for source in {*node.input} - settings}
    feeds = {(source, target) for source, target in feeds if source and target and source != target}
    assert feeds == {*pairwise(["input", *LAYERS, "output"])}


@clause("13.network.graph_warning")
def test_drawing_the_graph_warns_that_the_tracer_is_deprecated(tmp_path: Path) -> None:
    # chapter 13, line 925
    if torch.get_default_device().type == "simulated":
        pytest.skip("the tracer cannot see through the simulated device")
    with pytest.warns((FutureWarning, DeprecationWarning), match=r"torch\.jit\.trace` is deprecated"):
        graph_of(Network(nn.Sequential, nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear), tmp_path)


# The claims


@clause("13.conv2d.channels")
@pytest.mark.parametrize("kernels", [1, 32, 64])
def test_the_number_of_kernels_is_the_number_of_channels(Conv2d: Layer, kernels: int) -> None:
    assert Conv2d(3, kernels, 5)(torch.ones(1, 3, 32, 32)).shape[1] == kernels


@clause("13.conv2d.out_channels")
def test_the_parameter_is_called_out_channels(Conv2d: Layer) -> None:
    assert Conv2d(in_channels=3, out_channels=7, kernel_size=1).out_channels == 7


@clause("13.conv2d.out_channels")
def test_out_channel_and_nn_conv2d_lowercase_do_not_exist(Conv2d: Layer) -> None:
    with rejects(naming=None):
        Conv2d(in_channels=3, out_channel=7, kernel_size=1)
    assert not hasattr(nn, "conv2d")


@clause("13.max_pool2d.channels")
@pytest.mark.parametrize("channels", [3, 32, 64])
def test_pooling_keeps_the_channels(MaxPool2d: Layer, channels: int) -> None:
    assert MaxPool2d(2)(torch.ones(1, channels, 32, 32)).shape == (1, channels, 16, 16)


@clause("13.conv2d.stride")
def test_a_convolution_has_stride_1_by_default(Conv2d: Layer) -> None:
    assert Conv2d(3, 32, 5).stride == (1, 1)


@clause("13.conv2d.stride")
def test_pooling_default_stride_is_the_window(MaxPool2d: Layer) -> None:
    assert MaxPool2d(2).stride == 2


@clause("13.network.not_a_vgg")
def test_the_network_has_145578_parameters(network: Network) -> None:
    # by hand: weights and biases of 3→32, 32→32 and 32→64 5×5 convolutions, 1024→64 and 64→10 linear layers
    by_hand = (3 * 25 + 1) * 32 + (32 * 25 + 1) * 32 + (32 * 25 + 1) * 64 + 1025 * 64 + 65 * 10
    assert by_hand == 145_578
    assert sum(parameter.numel() for parameter in network.parameters()) == 145_578


@clause("13.network.not_a_vgg")
def test_the_network_is_not_a_vgg(network: Network) -> None:
    with torch.device("meta"):
        vgg = torchvision.models.vgg16(init_weights=False)
    # a VGG has 3×3 kernels and a ReLU after each layer with weights but the last; this network has neither
    assert {layer.kernel_size for layer in vgg.features if isinstance(layer, nn.Conv2d)} == {(3, 3)}  # pyright: ignore[reportGeneralTypeIssues]
    layers = [*vgg.features, *vgg.classifier]  # pyright: ignore[reportGeneralTypeIssues]
    followed = [
        isinstance(after, nn.ReLU) for layer, after in pairwise(layers) if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert followed == [True] * 15  # 13 convolutions and 2 linear layers
    assert isinstance(layers[-1], nn.Linear)  # the 16th has no ReLU after it
    assert {layer.kernel_size for layer in network.model1 if type(layer).__name__ == "Conv2d"} == {(5, 5)}
    assert not any(type(layer).__name__ == "ReLU" for layer in network.modules())
    assert sum(parameter.numel() for parameter in vgg.parameters()) == 138_357_544


# The listings


class WithoutSequential(nn.Module):
    """The chapter's first listing, lines 854 to 878, corrected, with the layers under test."""

    def __init__(self, Conv2d: Layer, MaxPool2d: Layer, Flatten: Layer, Linear: Layer) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels=3, out_channels=32, kernel_size=5, stride=1, padding=2)
        self.maxpool1 = MaxPool2d(kernel_size=2)
        self.conv2 = Conv2d(in_channels=32, out_channels=32, kernel_size=5, stride=1, padding=2)
        self.maxpool2 = MaxPool2d(kernel_size=2)
        self.conv3 = Conv2d(in_channels=32, out_channels=64, kernel_size=5, stride=1, padding=2)
        self.maxpool3 = MaxPool2d(kernel_size=2)
        self.flatten = Flatten()
        self.linear1 = Linear(in_features=1024, out_features=64)
        self.linear2 = Linear(in_features=64, out_features=10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv2(x))
        x = self.maxpool3(self.conv3(x))
        return self.linear2(self.linear1(self.flatten(x)))


@clause("13.listing.base")
def test_nn_modules_is_not_a_base_class() -> None:
    # line 854
    assert isinstance(nn.modules, ModuleType)
    assert isinstance(nn.Module, type)
    with pytest.raises(TypeError, match=r"module\(\) takes at most 2 arguments \(3 given\)"):

        class Ocean(nn.modules):  # pyright: ignore[reportGeneralTypeIssues]
            pass


@clause("13.listing.class_called")
def test_a_module_class_is_not_an_instance() -> None:
    # lines 880, 881 and 884: ocean = Ocean; print(ocean); ocean(input)
    class Ocean(nn.Module):
        def __init__(self) -> None:
            super().__init__()

    assert str(Ocean).startswith("<class '")
    with pytest.raises(TypeError, match=r"__init__\(\) takes 1 positional argument but 2 were given"):
        Ocean(torch.ones(64, 3, 32, 32))  # pyright: ignore[reportCallIssue]


@clause("13.listing.nested_forward")
def test_a_forward_defined_inside_init_is_not_a_method() -> None:
    # line 868
    class Ocean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

            def forward(self: Any, x: Tensor) -> Tensor:
                return self.linear(x)

    ocean = Ocean()  # no error yet: it has its layer and can be printed
    assert str(ocean) == "Ocean(\n  (linear): Linear(in_features=2, out_features=3, bias=True)\n)"
    assert "forward" not in vars(Ocean)
    with pytest.raises(NotImplementedError, match=r'Module \[Ocean\] is missing the required "forward" function'):
        ocean(torch.ones(2))


@clause("13.listing.without_sequential", "13.network.output")
def test_listing_with_three_corrections_is_the_network_of_the_chapter(
    network: Network, Conv2d: Layer, MaxPool2d: Layer, Flatten: Layer, Linear: Layer
) -> None:
    # lines 847 to 885
    ocean = WithoutSequential(Conv2d, MaxPool2d, Flatten, Linear)
    names = ["conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "flatten", "linear1", "linear2"]
    lines = [line.replace(f"({i})", f"({name})")[2:] for i, (name, line) in enumerate(zip(names, LINES, strict=True))]
    assert str(ocean) == "\n".join(["Ocean(", *lines, ")"])
    assert ocean(torch.ones(64, 3, 32, 32)).shape == (64, 10)
    state = network.state_dict()
    ocean.load_state_dict(dict(zip(ocean.state_dict(), state.values(), strict=True)))
    images = torch.rand(2, 3, 32, 32)
    assert_equal(ocean(images).detach(), network(images).detach())


WithoutSequential.__name__ = "Ocean"
LINES = PRINTED.splitlines()[2:-2]
"""The nine layers as printed inside the Sequential."""


@clause("13.listing.sequential", "13.network.graph_warning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.slow
def test_the_listing_with_sequential_completes_and_writes_a_graph(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # lines 917 to 926
    print(network)
    print(network(torch.ones((64, 3, 32, 32))).shape)
    graph_of(network, tmp_path / "maxlogs")
    assert capsys.readouterr().out == f"{PRINTED}\ntorch.Size([64, 10])\n"
    assert [path.name.startswith("events.out.tfevents.") for path in (tmp_path / "maxlogs").iterdir()] == [True]


# Sequential


class Affine(nn.Module):
    """a · x + b: two of these layers do not commute, so that their order can be tested."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(float(a))), b

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


affines = st.lists(st.tuples(st.integers(-2, 2), st.integers(-3, 3)), max_size=4)


@clause("13.sequential.composition")
@given(pairs=affines)
def test_sequential_is_the_composition_in_order(Sequential: Layer, pairs: list[tuple[int, int]]) -> None:
    expected = x = whole(3, seed=1, dtype=torch.float32)
    for a, b in pairs:
        expected = a * expected + b
    assert_equal(Sequential(*(Affine(a, b) for a, b in pairs))(x).detach(), expected)


@clause("13.sequential.composition")
def test_empty_sequential_is_the_identity(Sequential: Layer) -> None:
    x = torch.ones(2)
    assert Sequential()(x) is x


@clause("13.sequential.list")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_sequential_can_be_multiplied_in_place(Sequential: Any, times: int) -> None:
    layers = Sequential(nn.Flatten(), nn.ReLU())
    same = layers
    layers *= times
    assert layers is same
    assert [type(layer) for layer in layers] == [nn.Flatten, nn.ReLU] * times


@clause("13.sequential.list")
@given(pairs=affines, more=affines, start=st.integers(-5, 5), stop=st.integers(-5, 5))
def test_sequential_behaves_like_a_list(
    Sequential: Layer, pairs: list[tuple[int, int]], more: list[tuple[int, int]], start: int, stop: int
) -> None:
    layers, others = [Affine(a, b) for a, b in pairs], [Affine(a, b) for a, b in more]
    whole_network = Sequential(*layers)
    assert list(whole_network) == layers
    assert len(whole_network) == len(layers)
    assert list(whole_network[start:stop]) == layers[start:stop]
    assert [whole_network[i] for i in range(-len(layers), len(layers))] == layers + layers
    assert list(whole_network + Sequential(*others)) == layers + others
    assert list(whole_network * 2) == layers * 2
    assert list(whole_network.extend(others)) == layers + others


@clause("13.sequential.list")
def test_sequential_supports_insert_replace_and_delete(Sequential: Layer) -> None:
    a, b, c, d = (Affine(i, 0) for i in range(4))
    layers = Sequential(a, b).append(c)
    assert list(layers) == [a, b, c]
    layers.insert(1, d)
    assert list(layers) == [a, d, b, c]
    layers[0] = c
    del layers[1]
    assert layers.pop(-1) is c
    assert list(layers) == [c, b]
    assert list(layers.state_dict()) == ["0.a", "1.a"]


@clause("13.sequential.names")
def test_layers_are_called_by_number_or_by_the_names_of_a_mapping(Sequential: Layer) -> None:
    a, b = Affine(1, 0), Affine(2, 0)
    assert list(Sequential(a, b).state_dict()) == ["0.a", "1.a"]
    named = Sequential(OrderedDict(first=a, second=b))
    assert list(named.state_dict()) == ["first.a", "second.a"]
    assert named.second is named[1] is b
    assert str(Sequential(OrderedDict(only=nn.Identity()))) == "Sequential(\n  (only): Identity()\n)"


@clause("13.sequential.names")
def test_ocean_state_dict_loads_to_and_from_pytorch(network: Network) -> None:
    pytorchs = Network(nn.Sequential, nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear)
    assert list(network.state_dict()) == list(pytorchs.state_dict())
    network.load_state_dict(pytorchs.state_dict())
    for name, value in pytorchs.state_dict().items():
        assert_equal(network.state_dict()[name], value, name)
    pytorchs.load_state_dict(network.state_dict())


@clause("13.sequential.rejects")
@pytest.mark.parametrize("index", [2, -3])
def test_an_index_out_of_range_is_rejected(Sequential: Layer, index: int) -> None:
    with rejects(naming=rf"index|{index}"):
        Sequential(Affine(1, 0), Affine(2, 0))[index]


@clause("13.sequential.rejects")
@pytest.mark.parametrize(
    "value", [len, 1, "layer", torch.ones(1)], ids=["a function", "a number", "a word", "a tensor"]
)
def test_an_argument_that_is_no_module_is_rejected(Sequential: Layer, value: object) -> None:
    with rejects("Module", "args"):
        Sequential(Affine(1, 0), value)


# Ocean: the network as a separate component


@clause("13.ocean.network")
def test_ocean_is_the_network_of_the_chapter(Ocean: Layer) -> None:
    ocean = Ocean()
    assert str(ocean) == PRINTED
    assert ocean(torch.ones(64, 3, 32, 32)).shape == (64, 10)


@clause("13.ocean.classes")
def test_another_number_of_classes_changes_the_last_layer_only(Ocean: Layer) -> None:
    three = {name: tuple(value.shape) for name, value in Ocean(classes=3).state_dict().items()}
    ten = {name: tuple(value.shape) for name, value in Ocean().state_dict().items()}
    assert three == ten | {"model1.8.weight": (3, 64), "model1.8.bias": (3,)}


@clause("13.ocean.classes")
@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten"])
def test_an_impossible_number_of_classes_is_rejected(Ocean: Layer, classes: object) -> None:
    with rejects(naming="classes"):
        Ocean(classes=classes)


@clause("13.ocean.layers")
def test_ocean_layers_come_from_the_given_namespace(Ocean: Layer) -> None:
    class Layers:
        """PyTorch's layers, with a record of every layer that is created."""

        made: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Any:
            def make(*args: Any, **options: Any) -> nn.Module:
                self.made.append(name)
                return getattr(nn, name)(*args, **options)

            return make

    Ocean(layers=Layers())
    pairs = ["Conv2d", "MaxPool2d"] * 3
    assert sorted(Layers.made) == sorted([*pairs, "Flatten", "Linear", "Linear", "Sequential"])


@clause("13.ocean.layers")
def test_ocean_layers_are_pytorchs_by_default(Ocean: Layer) -> None:
    assert inspect.signature(Ocean).parameters["layers"].default is nn
    assert {type(layer).__module__.partition(".")[0] for layer in Ocean().model1} == {"torch"}
