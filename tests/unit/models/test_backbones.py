"""Backbones by name: which library answers, what they prefer, and that they fit any classes, channels and sizes."""

import copy

import pytest
import torch
from torch import nn

from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.core.errors import ConfigError, UnknownName
from imgclf.models.backbones import all_names, find_arch
from imgclf.models.build import build_model, empty_network, head_of
from imgclf.models.registry import ARCHS, Arch


def outputs(head: nn.Module) -> int:
    return head.out_channels if isinstance(head, nn.Conv2d) else head.out_features


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet18", 1, (64, 96)),
        ("timm:test_resnet", 3, (64, 64)),
        ("test_resnet.r160_in1k", 5, (64, 64)),
        ("torchvision:resnet18", 1, (64, 64)),
        ("mobilenetv3_small_100", 1, (64, 64)),
        ("vit_tiny_patch16_224", 1, (64, 96)),
        ("torchvision:squeezenet1_1", 4, (64, 64)),
        ("googlenet", 1, (64, 64)),
        ("efficientnet_lite0", 1, (64, 64)),
    ],
)
def test_a_backbone_fits_classes_channels_and_size(name, channels, size):
    model = build_model(ModelConfig(name, 3, channels, size))
    logits = model(torch.rand(2, channels, *size))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    head = head_of(model)
    assert outputs(head) == 3
    assert any(head is module for module in model.modules())
    assert head.weight.grad is not None


def test_pixels_follow_the_backbone():
    ours, theirs = find_arch("resnet18"), find_arch("torchvision:resnet18")
    assert (ours.family, theirs.family) == ("timm", "torchvision")
    assert (ours.interpolation, ours.crop_pct, ours.weights) == ("bicubic", 0.95, "timm/resnet18.a1_in1k")
    assert (theirs.interpolation, theirs.crop_pct) == ("bilinear", 224 / 256)
    assert theirs.weights.startswith("https://download.pytorch.org/models/resnet18-")
    assert ours.mean == theirs.mean == (0.485, 0.456, 0.406)
    assert find_arch("inception_v3").size == (299, 299)
    lite = find_arch("efficientnet_lite0")
    assert (lite.family, lite.mean, lite.std, lite.interpolation, lite.crop_pct) == (
        "offline",
        (0.5,),
        (0.5,),
        "bicubic",
        0.875,
    )


@pytest.mark.parametrize("name", ["resnet18", "torchvision:swin_t", "volo_d5_512", "vit_tiny_patch16_224", "alexnet"])
def test_what_a_backbone_prefers_is_a_valid_recipe(name):
    item = find_arch(name)
    recipe = PreprocessConfig(item.size, item.channels, "crop", item.interpolation, item.crop_pct, item.mean, item.std)
    assert len(recipe.mean) == item.channels


def test_names_resolve_in_order():
    assert find_arch("efficientnet_lite0").family == "offline"
    assert find_arch("timm:efficientnet_lite0").family == "timm"
    assert find_arch("alexnet").family == "torchvision"
    assert find_arch("lenet").family == "teaching"
    assert find_arch("resnet18.fb_swsl_ig1b_ft_in1k").weights == "timm/resnet18.fb_swsl_ig1b_ft_in1k"


def test_all_names_are_unique_and_hold_each_library():
    names = all_names()
    assert len(names) == len(set(names)) > 1000
    assert {"lenet", "small_vgg16_bn", "resnet18", "alexnet"} <= set(names)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet81", "resnet18"),
        ("lennet", "lenet"),
        ("timm:resnt18", "timm:resnet18"),
        ("torchvision:alexnett", "torchvision:alexnet"),
        ("resnet18.no_such_tag", "resnet18.a1_in1k"),
    ],
)
def test_an_unknown_name_answers_with_close_matches(name, close):
    with pytest.raises(UnknownName, match=close):
        find_arch(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf_hub:timm/resnet18.a1_in1k",
        "hf-hub:timm/resnet18.a1_in1k",
        "local-dir:/tmp",
        "timm:hf_hub:timm/resnet18.a1_in1k",
        "timm:local-dir:/tmp",
        "timm/resnet18.a1_in1k",
        "/etc/passwd",
        "../resnet18",
        "",
        "timm:",
        "keras:resnet18",
        "torchvision:fasterrcnn_resnet50_fpn",
        "resnet18\n",
        "[",
        "resnet18.[a-z]*",
    ],
)
def test_prefixes_paths_and_other_libraries_are_no_architectures(name):
    with pytest.raises(UnknownName):
        find_arch(name)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("torchvision:alexnet", (32, 32), "the smallest size that works is 63$"),
        ("torchvision:vit_b_32", (64, 96), "square images only"),
        ("torchvision:vit_b_32", (100, 100), "indivisible by patch size.*its own size is 224x224"),
    ],
)
def test_sizes_that_do_not_work_are_refused(name, size, message):
    with pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(name, 3, 3, size))


def test_dropout_goes_where_the_net_has_it():
    assert empty_network(ModelConfig("resnet18", 3, dropout=0.3)).drop_rate == 0.3
    alexnet = empty_network(ModelConfig("alexnet", 3, dropout=0.3))
    assert {m.p for m in alexnet.modules() if isinstance(m, nn.Dropout)} == {0.3}
    with pytest.raises(ConfigError, match="no dropout"):
        empty_network(ModelConfig("torchvision:resnet18", 3, dropout=0.3))


def test_a_list_of_heads_is_one_module():
    head = head_of(empty_network(ModelConfig("deit_tiny_distilled_patch16_224", 3)))
    assert [layer.out_features for layer in head] == [3, 3]


@pytest.mark.parametrize("name", ["mnasnet0_5", "mnasnet1_3"])
def test_an_mnasnet_loads_tensors_alone_and_is_torchvisions(name):
    from torchvision.models import get_model

    model = build_model(ModelConfig(name, 3, 3, (64, 64))).eval()
    original = get_model(name, num_classes=3).eval()
    model.load_state_dict(dict(original.state_dict()))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), original(image))
        assert torch.equal(copy.deepcopy(model)(image), original(image))


# -- empty networks


def shapes(model):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "size"),
    [("lenet", (32, 40)), ("resnet18", (32, 32)), ("regnet_x_400mf", (32, 32)), ("mnasnet0_5", (32, 32))],
)
def test_an_empty_network_is_the_real_one_without_values(name, size):
    spec = ModelConfig(name, 3, 3, size)
    real = build_model(spec)
    before = torch.get_rng_state()
    empty = empty_network(spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert shapes(empty) == shapes(real)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("lenet", (9, 9), "the smallest size that works is 16$"),
        ("torchvision:vit_b_32", (64, 96), "square images only"),
    ],
)
def test_an_empty_network_refuses_what_the_real_one_refuses(name, size, message):
    with pytest.raises(ConfigError, match=message):
        empty_network(ModelConfig(name, 3, 3, size))


def test_a_size_that_does_not_work_takes_no_memory(monkeypatch):
    devices = set()

    def build(spec):
        devices.add(torch.get_default_device().type)
        return find_arch("torchvision:alexnet").build(spec)

    recorded = Arch("recorded", build, size=(224, 224), channels=3, family="others")
    monkeypatch.setitem(ARCHS._items, "recorded", recorded)
    with pytest.raises(ConfigError, match=r"the smallest size that works is 63$"):
        empty_network(ModelConfig("recorded", 3, 3, (32, 32)))
    assert devices == {"meta"}


class Undecided(nn.Module):
    """Looks at its numbers on the way, which there are none of on the meta device."""

    def __init__(self, spec):
        super().__init__()
        self.head = nn.Linear(spec.channels, spec.classes)

    def forward(self, x):
        mean = x.mean((2, 3))
        return self.head(mean if mean.sum() > 0 else -mean)


def test_a_network_that_looks_at_its_numbers_can_be_emptied():
    ARCHS.add("undecided", Arch("undecided", Undecided, size=(8, 8), channels=3, family="own"))
    assert shapes(empty_network(ModelConfig("undecided", 2, 3, (9, 9))))["head.weight"] == (torch.float32, (2, 3))
