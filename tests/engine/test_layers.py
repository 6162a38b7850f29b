import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.layers import Layout, channel_dim, known_layers, matching_layers
from lightning_zico.spaces import NASBench201
from tests.engine.models import Tied, cnn, mlp

# Weights


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 2),
        nn.Conv1d(3, 2, 1),
        nn.Conv2d(3, 2, 1),
        nn.Conv3d(3, 2, 1),
        nn.ConvTranspose1d(3, 2, 1),
        nn.ConvTranspose2d(3, 2, 1),
        nn.ConvTranspose3d(3, 2, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_layers_of_zico_are_linear_and_convolutional(layer):
    assert list(known_layers(nn.Sequential(layer, nn.BatchNorm2d(2), nn.Embedding(3, 2)))) == ["0.weight"]


def test_weights_come_in_the_modules_order_without_frozen_ones():
    module = nn.ModuleDict({"b": nn.Linear(1, 1), "a": nn.Conv1d(1, 1, 1), "frozen": nn.Linear(1, 1)})
    module["frozen"].weight.requires_grad_(False)
    assert list(known_layers(module)) == ["b.weight", "a.weight"]


def test_patterns_choose_any_parameter_that_is_trainable():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    module[0].bias.requires_grad_(False)
    assert list(matching_layers(module, ["*.weight"])) == ["0.weight", "1.weight"]
    assert list(matching_layers(module, ["1.*", "0.bias"])) == ["1.weight", "1.bias"]
    assert list(matching_layers(module, ["*.WEIGHT"])) == []


def test_a_tied_weight_stands_once_under_its_first_name():
    assert list(known_layers(Tied())) == ["first.weight", "head.weight"]
    # also where the first to hold it is no layer of ZiCo
    module = nn.ModuleDict({"embed": nn.Embedding(3, 4), "head": nn.Linear(4, 3)})
    module["head"].weight = module["embed"].weight
    assert list(known_layers(module)) == ["embed.weight"]


def test_a_parametrised_weight_is_what_it_is_computed_from():
    module = nn.Sequential(weight_norm(nn.Linear(3, 2)), spectral_norm(nn.Conv2d(2, 2, 1)))
    assert list(known_layers(module)) == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "1.parametrizations.weight.original",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        old = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    assert list(known_layers(old)) == ["weight_g", "weight_v"]


# The weight of each layer


def test_each_layer_has_the_name_of_its_weight():
    module = cnn()
    assert Layout.of(module).layers == {id(module[idx]): f"{idx}.weight" for idx in (0, 3, 7)}


def test_a_tied_weight_is_both_layers():
    module = Tied()
    names = Layout.of(module).layers
    assert names[id(module.first)] == names[id(module.second)] == "first.weight"
    module = nn.ModuleDict({"embed": nn.Embedding(3, 4), "head": nn.Linear(4, 3)})
    module["head"].weight = module["embed"].weight
    assert Layout.of(module).layers == {id(module["head"]): "embed.weight"}


def test_a_parametrised_layer_has_the_name_of_a_part_of_its_weight():
    module = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    assert Layout.of(module).layers == {
        id(module[0]): "0.parametrizations.weight.original0",
        id(module[1]): "1.weight",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        old = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    assert Layout.of(old).layers == {id(old): "weight_g"}


def test_a_layer_whose_weight_is_frozen_has_none():
    module = mlp()
    module[0].weight.requires_grad_(False)
    assert Layout.of(module).layers == {id(module[3]): "3.weight"}


@pytest.mark.parametrize(
    ("layer", "shape", "dim"),
    [
        (nn.Linear(4, 7), (2, 4), 1),
        (nn.Linear(4, 7), (2, 5, 4), 2),
        (nn.Conv1d(4, 7, 1), (2, 4, 5), 1),
        (nn.ConvTranspose2d(4, 7, 1), (2, 4, 5, 6), 1),
    ],
)
def test_channels_are_where_the_layer_puts_them(layer, shape, dim):
    output = layer(torch.zeros(shape))
    assert channel_dim(layer, output) == dim
    assert output.shape[dim] == 7


# Blocks


class BasicBlock(nn.Module):
    def __init__(self, narrow, wide):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide)
        self.downsample = nn.Sequential(nn.Conv2d(narrow, wide, 1), nn.BatchNorm2d(wide)) if narrow != wide else None

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.layer2 = nn.Sequential(BasicBlock(4, 8), BasicBlock(8, 8))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.bn1(self.conv1(x)))).mean((2, 3)))


RESNET_BLOCKS = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), num_layers=3, enable_nested_tensor=False
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)


class ConvNormActivation(nn.Sequential):
    """No plain container: a class of its own, as in torchvision."""

    def __init__(self, narrow, wide, kernel=3):
        super().__init__(nn.Conv2d(narrow, wide, kernel), nn.BatchNorm2d(wide), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(ConvNormActivation(width, 6 * width, 1), ConvNormActivation(6 * width, width))


class MobileNet(nn.Module):
    def __init__(self, num_blocks=3, last=False):
        super().__init__()
        self.features = nn.Sequential(
            ConvNormActivation(3, 4),
            *(InvertedResidual(4) for _ in range(num_blocks)),
            *([ConvNormActivation(4, 16)] if last else []),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(16, 2))


class Detector(nn.Module):
    """A backbone and a head, each once."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.ModuleDict({"lateral": nn.Conv2d(8, 4, 1)})
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_residual_blocks_are_found():
    assert block_names(ResNet()) == RESNET_BLOCKS


def test_transformer_blocks_are_found():
    assert block_names(ViT()) == [f"encoder.layers.{idx}" for idx in range(3)]


def test_cells_and_reductions_of_a_search_space_are_found():
    space = NASBench201()
    arch = space.parse("|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|")
    assert block_names(space.build(arch)) == list(space.blocks(arch))


def test_inverted_residuals_are_found_among_singles():
    assert block_names(MobileNet()) == ["features.1", "features.2", "features.3"]


def test_every_class_that_is_repeated_counts():
    assert block_names(MobileNet(last=True)) == [f"features.{idx}" for idx in range(5)]


def test_what_stands_once_is_looked_into():
    assert block_names(Detector(ResNet())) == [f"backbone.{name}" for name in RESNET_BLOCKS]
    assert block_names(nn.ModuleDict({"net": Detector(ResNet())})) == [f"net.backbone.{n}" for n in RESNET_BLOCKS]


def test_nothing_is_found_within_a_block():
    # the inner convolutions are of one class too, and twice as many
    assert not any("conv" in name for name in block_names(MobileNet()))


def test_the_links_of_a_chain_end_before_the_next_layer():
    # convolution, norm, activation; the last layer alone, whose flattening comes before it
    assert block_names(cnn()) == ["2", "5", "7"]
    assert block_names(mlp()) == ["2", "3"]
    assert block_names(nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})) == ["net.0", "net.1"]


def test_the_longest_chain_is_taken():
    module = nn.ModuleDict({"head": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "body": cnn()})
    assert block_names(module) == ["body.2", "body.5", "body.7"]


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}),  # nobody knows in which order they run
        MobileNet(num_blocks=1).features[1].conv[0],
    ],
)
def test_without_repetition_and_chain_there_is_none(module):
    assert block_names(module) == []


@pytest.mark.parametrize("module", [ResNet(), MobileNet(), Detector(ResNet()), cnn(), mlp()])
def test_names_are_of_submodules_and_unlike(module):
    names = block_names(module)
    assert len(names) == len(set(names)) >= 2
    assert set(names) <= dict(module.named_modules()).keys()
