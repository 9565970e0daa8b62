"""The layer table: its formula is PyTorch's, for every window, and its rows describe the whole network."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.models.build import build_model, empty_network
from imgclf.models.summary import LayerRow, layer_table


def table_of(name: str, size, channels=3, classes=10):
    model = empty_network(ModelConfig(name, classes, channels, size))
    return model, layer_table(model, size, channels)


def test_lenet_table():
    _, table = table_of("lenet", (28, 28), channels=1)
    assert table == (
        LayerRow("features.0", "Conv2d", (6, 24, 24), "(28 - 5 + 2*0)/1 + 1 = 24", 156),
        LayerRow("features.1", "ReLU", (6, 24, 24), "", 0),
        LayerRow("features.2", "MaxPool2d", (6, 12, 12), "(24 - 2 + 2*0)/2 + 1 = 12", 0),
        LayerRow("features.3", "Conv2d", (16, 8, 8), "(12 - 5 + 2*0)/1 + 1 = 8", 2416),
        LayerRow("features.4", "ReLU", (16, 8, 8), "", 0),
        LayerRow("features.5", "MaxPool2d", (16, 4, 4), "(8 - 2 + 2*0)/2 + 1 = 4", 0),
        LayerRow("features.6", "Flatten", (256,), "", 0),
        LayerRow("hidden.0", "Linear", (120,), "", 30840),
        LayerRow("hidden.1", "ReLU", (120,), "", 0),
        LayerRow("hidden.2", "Linear", (84,), "", 10164),
        LayerRow("hidden.3", "ReLU", (84,), "", 0),
        LayerRow("head", "Linear", (10,), "", 850),
    )


def formulas(*layers, size=(28, 28), channels=1):
    return [row.formula for row in layer_table(nn.Sequential(*layers), size, channels)]


def test_the_worked_example_of_the_document_gives_32():
    # W = 32, F = 3, S = 1, P = 1: the document's text says 31, its code 32
    assert formulas(nn.Conv2d(1, 8, 3, padding=1), size=(32, 32)) == ["(32 - 3 + 2*1)/1 + 1 = 32"]


def test_other_windows():
    assert formulas(nn.Conv2d(1, 2, 3, stride=2)) == ["floor((28 - 3 + 2*0)/2) + 1 = 13"]
    assert formulas(nn.Conv2d(1, 2, 3, dilation=2)) == ["(28 - (2*(3 - 1) + 1) + 2*0)/1 + 1 = 24"]
    assert formulas(nn.Conv2d(1, 2, 3, padding="same")) == ["(28 - 3 + 2*1)/1 + 1 = 28"]
    assert formulas(nn.Conv2d(1, 2, (5, 3), padding=(1, 0)), size=(10, 20)) == [
        "H: (10 - 5 + 2*1)/1 + 1 = 8, W: (20 - 3 + 2*0)/1 + 1 = 18"
    ]
    assert formulas(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, ceil_mode=True), size=(7, 7))[1] == (
        "ceil((7 - 2 + 2*0)/2) + 1 = 4"
    )


@given(
    kind=st.sampled_from(["conv", "max", "avg"]),
    side=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    size=st.integers(1, 4),
    stride=st.integers(1, 5),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    ceil=st.booleans(),
)
def test_the_formula_is_what_pytorch_does(kind, side, size, stride, padding, dilation, ceil):
    pool_padding = min(padding, size // 2)
    layer = {
        "conv": lambda: nn.Conv2d(1, 2, size, stride, padding, dilation),
        "max": lambda: nn.MaxPool2d(size, stride, pool_padding, dilation, ceil_mode=ceil),
        "avg": lambda: nn.AvgPool2d(size, stride, pool_padding, ceil_mode=ceil),
    }[kind]()
    rows = layer_table(nn.Sequential(nn.Conv2d(1, 1, 1), layer), side, 1)
    sides = set()
    for formula in re.split(", W: ", rows[1].formula.removeprefix("H: ")):
        text, _, result = formula.partition(" = ")
        computed = eval(text, {"floor": math.floor, "ceil": math.ceil})
        # Of a pooling with ceil_mode, PyTorch leaves out a last window that begins in the padding.
        assert int(result) == computed or (ceil and kind != "conv" and int(result) == computed - 1)
        sides.add(int(result))
    assert sides == set(rows[1].shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("small_resnet18", (32, 32)),
        ("small_vgg11_bn", (32, 32)),
        ("resnet18", (64, 64)),
        ("vit_tiny_patch16_224", (64, 64)),  # owns a class token and position embeddings
        ("torchvision:vit_b_32", (64, 64)),  # multi-head attention uses the weights of a layer it does not call
        ("torchvision:swin_t", (64, 64)),  # window attention, too
        ("efficientnet_lite0", (64, 64)),
    ],
)
def test_rows_add_up_to_the_network(name, size):
    model, table = table_of(name, size)
    assert sum(row.params for row in table) == sum(p.numel() for p in model.parameters())
    assert table[-1].shape == (10,) or not table[-1].shape  # the scores, or weights that another layer uses
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_table_changes_nothing_in_the_model():
    model = build_model(ModelConfig("small_vgg11_bn", 10, 3, (32, 32)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    layer_table(model, (32, 32), 3)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_shared_layers_are_counted_once():
    layer = nn.Linear(4, 4)
    rows = layer_table(nn.Sequential(nn.Flatten(), layer, layer), (2, 2), 1)
    assert [row.params for row in rows] == [0, 20, 0]
