"""Chapter 16: networks, edits and weights that are wrong."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from spec.faults import Fault

TEST = "test_16_vgg.py::test_"


class ConfigurationA(Fault):
    """Eleven layers instead of sixteen."""

    caught_by = f"{TEST}vgg16_is_configuration_d_of_the_paper"
    says = r"At index 0 diff: \(64,\) != \(64, 64\)"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        return torchvision.models.vgg11(**options)


class EveryTensorIsALayer(Fault):
    """The network has batch normalization: 16 layers with weights, but more tensors."""

    caught_by = f"{TEST}vgg16_has_16_weight_layers_32_tensors_and_138357544_parameters"
    says = r"assert 58 == 32"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        return torchvision.models.vgg16_bn(**options)


class DropoutIsForgotten(Fault):
    """The classifier has no dropout."""

    caught_by = f"{TEST}vgg16_with_a_layer_added_beside_prints_as_documented"
    says = r"Dropout\(p=0\.5, inplace=False\)"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        network = torchvision.models.vgg16(**options)
        network.classifier = nn.Sequential(*(x for x in network.classifier if not isinstance(x, nn.Dropout)))
        return network


class NothingIsAveraged(Fault):
    """Only images of 224×224 leave 7×7 maps."""

    caught_by = f"{TEST}images_of_other_sizes_get_the_same_number_of_scores"
    says = r"25088"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        network = torchvision.models.vgg16(**options)
        network.avgpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        return network


class PoolingComesFirst(Fault):
    """Each stage begins with its pooling instead of ending with it."""

    caught_by = f"{TEST}vgg16_is_configuration_d_of_the_paper"
    says = r"\(\), \(64, 64\)"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        network = torchvision.models.vgg16(**options)
        layers = [*network.features]  # pyright: ignore[reportGeneralTypeIssues]
        stages = [layers[begin:end] for begin, end in [(0, 5), (5, 10), (10, 17), (17, 24), (24, 31)]]
        network.features = nn.Sequential(*(layer for stage in stages for layer in (stage[-1], *stage[:-1])))
        return network


class SecondConvolutionIsLeftOut(Fault):
    """The repr is that of VGG16, but a layer is skipped."""

    caught_by = f"{TEST}vgg16_features_equal_the_printed_layers_bit_for_bit"
    says = r"the last maps differs at index"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        class Features(nn.Sequential):
            def forward(self, input: Tensor) -> Tensor:
                for index, layer in enumerate(self):
                    input = input if index in (2, 3) else layer(input)
                return input

        network = torchvision.models.vgg16(**options)
        network.features = Features(*network.features)  # pyright: ignore[reportGeneralTypeIssues]
        return network


class EveryChildIsRun(Fault):
    """Layers that are added to the network are run, as in a Sequential."""

    caught_by = f"{TEST}a_layer_added_beside_the_classifier_is_never_run"
    says = r"\[1, 10\].*==.*\(1, 1000\)"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        class Network(torchvision.models.VGG):
            def forward(self, x: Tensor) -> Tensor:
                for name, layer in self.named_children():
                    x = layer(x.flatten(1) if name == "classifier" else x)
                return x

        network = torchvision.models.vgg16(**options)
        network.__class__ = Network
        return network


class BatchIsFlattenedToo(Fault):
    """All images are flattened into one row."""

    caught_by = f"{TEST}the_shape_after_each_stage_and_each_linear_layer"
    says = r"25088|50176"

    @staticmethod
    def vgg16(**options: Any) -> nn.Module:
        class Network(torchvision.models.VGG):
            def forward(self, x: Tensor) -> Tensor:
                return self.classifier(self.avgpool(self.features(x)).flatten())

        network = torchvision.models.vgg16(**options)
        network.__class__ = Network
        return network


class ClassesAreIgnored(Fault):
    """The network has a thousand scores, for any number of classes."""

    caught_by = f"{TEST}another_number_of_classes_changes_the_last_layer_only"
    says = r"classifier\.6"

    @staticmethod
    def vgg16(*, num_classes: int = 1000, **options: Any) -> nn.Module:
        return torchvision.models.vgg16(**options)


class HashIsNotChecked(Fault):
    """The downloaded file is loaded without verification."""

    caught_by = "test_16_vgg_weights.py::test_a_file_with_another_hash_is_refused_and_nothing_is_left"
    says = r"was accepted, but must be rejected with an error that names /hash value"

    @staticmethod
    def vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> nn.Module:
        network = torchvision.models.vgg16(**options)
        state = VGG16_Weights.verify(weights).get_state_dict(progress=progress, check_hash=False)
        network.load_state_dict(state, assign=True)
        return network


class AppendedWhereTheTutorialDoes(Fault):
    """The layer is added to the network itself, where it is never run."""

    caught_by = f"{TEST}append_classifier_inside_maps_scores_to_classes"
    says = r"index 4 is out of range"

    @staticmethod
    def append_classifier(network: Any, classes: int, *, inside: bool = True) -> Any:
        last = network.classifier[-1]
        network.add_module(str(len(network.classifier)), nn.Linear(last.out_features, classes))
        return network


class AppendedBesideButLearns(Fault):
    """`inside` is ignored."""

    caught_by = f"{TEST}append_classifier_beside_leaves_output_unchanged_and_gets_no_gradient"
    says = r"has shape \[2, 7\], expected \[2, 5\]"

    @staticmethod
    def append_classifier(network: Any, classes: int, *, inside: bool = True) -> Any:
        network.classifier.append(nn.Linear(network.classifier[-1].out_features, classes))
        return network


class SixthCountedFromOne(Fault):
    """The sixth layer, counted from 1, is replaced: the dropout before the last layer."""

    caught_by = f"{TEST}replace_classifier_of_vgg16_gives_ten_scores"
    says = r"\(5\): Linear\(in_features=4096, out_features=10"

    @staticmethod
    def replace_classifier(network: Any, classes: int) -> Any:
        network.classifier[-2] = nn.Linear(4096, classes)
        return network


class WholeClassifierIsReplaced(Fault):
    """Two trained layers are removed together with the last one."""

    caught_by = f"{TEST}replace_classifier_replaces_only_the_last_layer"
    says = r"assert .*Linear\(in_features=3, out_features=2|out of range"

    @staticmethod
    def replace_classifier(network: Any, classes: int) -> Any:
        network.classifier = nn.Sequential(nn.Linear(network.classifier[0].in_features, classes))
        return network


class NewLayerIsAlwaysFloat32(Fault):
    """The new layer is always on the CPU, in float32 and in training mode."""

    caught_by = f"{TEST}new_classifier_layer_has_device_dtype_and_mode_of_the_old_one"
    says = r"torch\.nn\.modules\.linear\.Linear.* is <class .*test_16_vgg"

    @staticmethod
    def replace_classifier(network: Any, classes: int) -> Any:
        network.classifier[-1] = nn.Linear(network.classifier[-1].in_features, classes, dtype=torch.float32)
        return network

    append_classifier = AppendedBesideButLearns.append_classifier


class NewLayerIsFrozenToo(Fault):
    """The new layer requires gradients only if the old one does."""

    caught_by = f"{TEST}new_classifier_layer_has_device_dtype_and_mode_of_the_old_one"
    says = r"assert \[\] == \['classifier"

    @staticmethod
    def replace_classifier(network: Any, classes: int) -> Any:
        last = network.classifier[-1]
        layer = type(last)(last.in_features, classes, device=last.weight.device, dtype=last.weight.dtype)
        layer.train(last.training).requires_grad_(last.weight.requires_grad)
        network.classifier[-1] = layer
        return network

    append_classifier = staticmethod(lambda network, classes: NewLayerIsFrozenToo.replace_classifier(network, classes))
