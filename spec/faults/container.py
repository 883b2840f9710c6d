"""Chapter 13: containers and networks that are wrong."""

from typing import Any

from torch import Tensor, nn

from reference.models import Ocean as RightOcean
from spec.faults import Fault


class LastLayerFirst(Fault):
    """The layers are applied from right to left, as in the composition f₁(f₂(x))."""

    caught_by = "test_13_container.py::test_sequential_is_the_composition_in_order"
    says = r"differs at index(.|\n)*Sequential applies its layers in the given order"

    class Sequential(nn.Sequential):
        def forward(self, input: Any) -> Any:
            for layer in reversed(list(self)):
                input = layer(input)
            return input


class SlicesAreLists(Fault):
    """A slice loses its last layer, because its end is excluded twice."""

    caught_by = "test_13_container.py::test_sequential_behaves_like_a_list"
    says = r"Sequential behaves like the list of its layers"

    class Sequential(nn.Sequential):
        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, slice):
                return nn.Sequential(*list(self)[index][:-1])
            return super().__getitem__(index)


class NamesAreLost(Fault):
    """The names of an OrderedDict are replaced by numbers."""

    caught_by = "test_13_container.py::test_layers_are_called_by_number_or_by_the_names_of_a_mapping"
    says = r"'0.a', '1.a'.*first.a|first.a"

    class Sequential(nn.Sequential):
        def __init__(self, *layers: Any) -> None:
            super().__init__(*(layers[0].values() if layers and isinstance(layers[0], dict) else layers))


class AnythingIsALayer(Fault):
    """Arguments that are not modules are left out silently."""

    caught_by = "test_13_container.py::test_an_argument_that_is_no_module_is_rejected"
    says = r"was accepted, but must be rejected with an error that names /Module/"

    class Sequential(nn.Sequential):
        def __init__(self, *layers: Any) -> None:
            super().__init__(*(layer for layer in layers if isinstance(layer, nn.Module)))


class LayersAreForwardedNotCalled(Fault):
    """`layer.forward(x)` instead of `layer(x)`: hooks are not called, and TensorBoard cannot name the layers."""

    caught_by = "test_13_container.py::test_the_graph_on_the_board_has_the_nine_layers"
    says = r"Conv2d\[0\]"
    Conv2d, MaxPool2d, Flatten, Linear = nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear

    class Sequential(nn.Sequential):
        def forward(self, input: Any) -> Any:
            for layer in self:
                input = layer.forward(input)
            return input


class EqualShapesAreAddedUp(Fault):
    """A residual connection is added around every layer that keeps the shape."""

    caught_by = "test_13_container.py::test_the_graph_on_the_board_leads_from_each_layer_to_the_next"
    says = r"Extra items in the right set:(.|\n)*\('Conv2d\[2\]', 'MaxPool2d\[3\]'\)"
    Conv2d, MaxPool2d, Flatten, Linear = nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear

    class Sequential(nn.Sequential):
        def forward(self, input: Any) -> Any:
            for layer in self:
                output = layer(input)
                input = output + input if output.shape == input.shape else output
            return input


class LossListingsNetwork(Fault):
    """The last layer gives 64 scores, as in chapter 14's listing."""

    caught_by = "test_13_container.py::test_ocean_is_the_network_of_the_chapter"
    says = r"_features=64, bias=True"

    class Ocean(RightOcean):
        def __init__(self, classes: int = 10, layers: Any = nn) -> None:
            super().__init__(classes, layers)
            self.model1[8] = layers.Linear(64, 64)


class ClassesAreIgnored(Fault):
    """The network has ten scores, for any number of classes."""

    caught_by = "test_13_container.py::test_another_number_of_classes_changes_the_last_layer_only"
    says = r"model1.8"

    class Ocean(RightOcean):
        def __init__(self, classes: int = 10, layers: Any = nn) -> None:
            super().__init__(10, layers)


class LayersAreAlwaysPytorchs(Fault):
    """The namespace is accepted and not used."""

    caught_by = "test_13_container.py::test_ocean_layers_come_from_the_given_namespace"
    says = r"is built from any namespace of layers"

    class Ocean(RightOcean):
        def __init__(self, classes: int = 10, layers: Any = nn) -> None:
            super().__init__(classes)


class ScoresAreProbabilities(Fault):
    """The network ends with a softmax, which cross entropy applies again."""

    caught_by = "test_13_container.py::test_ocean_is_the_network_of_the_chapter"
    says = r"\(9\): Softmax"

    class Ocean(RightOcean):
        def __init__(self, classes: int = 10, layers: Any = nn) -> None:
            super().__init__(classes, layers)
            self.model1.append(nn.Softmax(dim=1))

        def forward(self, images: Tensor) -> Tensor:
            return self.model1(images)
