"""imgclf's own architectures: the documents' layer and parameter counts, and one contract that all of them keep."""

import pytest
import torch
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.models.backbones import find_arch
from imgclf.models.build import build_model, empty_network, head_of
from imgclf.models.registry import ARCHS, Arch, arch

find_arch("lenet")  # importing its module fills the registry
DEEPER = ("small_vgg13", "small_vgg16", "small_vgg19", "small_resnet34", "small_resnet101", "small_resnet152")
OWN = [item for item in ARCHS if item.family != "offline" and not item.name.startswith(DEEPER)]


def native(name: str, **changes) -> ModelConfig:
    item = find_arch(name)
    values = {"classes": item.classes, "channels": item.channels, "size": item.size} | changes
    return ModelConfig(name, **values)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn_zero_to_all", 8_490),
        ("lenet", 44_426),
        ("cnn_two_layer", 50_186),
        ("cnn_deep", 1_379_557),
        ("cnn_keras", 619_786),
        ("cnn_cifar", 541_094),
        ("cnn_imagefolder", 727_074),
    ],
)
def test_parameter_counts_are_those_of_the_documents(name, count):
    assert parameters(empty_network(native(name))) == count


@pytest.mark.parametrize(
    ("name", "flat"),
    [
        ("cnn_zero_to_all", 320),
        ("lenet", 16 * 4 * 4),
        ("cnn_two_layer", 7 * 7 * 64),
        ("cnn_deep", 4 * 4 * 128),
        ("cnn_keras", 4 * 4 * 128),
        ("cnn_cifar", 64 * 4 * 4),
        ("cnn_imagefolder", 16 * 13 * 29),
        ("vgg16_cifar_lab", 512 * 4 * 4),
        ("small_vgg16", 512),
    ],
)
def test_flatten_sizes_are_those_of_the_documents(name, flat):
    model = empty_network(native(name))
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    assert first.in_features == flat


@pytest.mark.slow
@pytest.mark.parametrize("item", OWN, ids=lambda item: item.name)
def test_contract_of_every_own_architecture(item: Arch):
    """With as many channels as it has by itself not, and with other classes."""
    channels = 1 if item.channels == 3 else 3
    size = (8, 8) if "resnet" in item.name else item.size  # they take any size, and this one is quick
    torch.manual_seed(0)
    model = build_model(ModelConfig(item.name, 5, channels, size))
    logits = model(torch.rand(2, channels, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    head = head_of(model)
    assert isinstance(head, nn.Linear)
    assert head is model.head
    assert head.out_features == 5


def test_building_in_evaluation_counts_no_image():
    model = build_model(native("small_vgg11_bn", size=(40, 48)))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(norm.num_batches_tracked == 0 and norm.running_mean.eq(0).all() for norm in norms)


def test_vgg_depths_count_the_layers_with_weights():
    for depth in (11, 13, 16, 19):
        for suffix in ("", "_bn"):
            model = empty_network(native(f"small_vgg{depth}{suffix}"))
            layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            assert len(layers) == depth
            assert len(norms) == (depth - 3 if suffix else 0)
            assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_resnet_depths_count_the_layers_with_weights():
    for depth in (18, 34, 50, 101, 152):
        model = empty_network(native(f"small_resnet{depth}"))
        shortcuts = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" in name]
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) - len(shortcuts) == depth
        assert parameters(model.stem) == 3 * 64 * 9 + 2 * 64


def test_small_resnet18_has_the_published_size():
    assert parameters(empty_network(native("small_resnet18"))) == 11_173_962  # the usual CIFAR-10 ResNet-18


def test_lab_resnet_starts_every_block_as_its_shortcut():
    model = build_model(native("resnet50_cifar_lab")).eval()
    block = model.stages[0][1]  # its shortcut is the identity
    maps = torch.rand(1, 64, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(maps), maps)
    assert model.stages(model.stem(torch.rand(2, 3, 32, 32))).shape == (2, 512, 8, 8)


def test_dropout_of_the_spec_replaces_the_own_one():
    rates = [m.p for m in build_model(native("cnn_cifar", dropout=0.1)).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.1, 0.1]
    assert [m.p for m in build_model(native("cnn_keras")).modules() if isinstance(m, nn.Dropout)] == [0.4]


def test_dropout_where_there_is_none_is_refused():
    with pytest.raises(ConfigError, match="lenet has no dropout"):
        build_model(native("lenet", dropout=0.2))
    build_model(native("lenet", dropout=0.0))


@pytest.mark.parametrize("size", [(28, 60), (64, 32), (33, 47)])
def test_other_sizes_work_and_change_the_flatten(size):
    model = build_model(native("lenet", size=size))
    assert model(torch.rand(2, 1, *size)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("lenet", 16),
        ("cnn_two_layer", 4),
        ("cnn_cifar", 8),
        ("small_vgg11", 32),
        ("vgg16_cifar_lab", 8),
        ("speednet", 9),
    ],
)
def test_too_small_an_image_names_the_smallest_that_works(name, smallest):
    too_small = smallest - 1
    with pytest.raises(ConfigError, match=f"{too_small}x40.*the smallest size that works is {smallest}$"):
        build_model(native(name, size=(too_small, 40)))
    build_model(native(name, size=(smallest, smallest)))


def test_building_leaves_the_weights_to_the_seed():
    def weights(size):
        torch.manual_seed(7)
        return build_model(native("lenet", size=size)).head.weight

    torch.manual_seed(7)
    direct = find_arch("lenet").build(native("lenet", size=(32, 32))).head.weight
    assert torch.equal(weights((32, 32)), direct)


def test_xavier_and_kaiming_reach_the_layers():
    torch.manual_seed(0)
    head = build_model(native("cnn_two_layer")).head
    bound = (6 / (head.in_features + head.out_features)) ** 0.5
    assert head.weight.abs().max() <= bound
    assert head.weight.abs().max() > bound * 0.99
    conv = build_model(native("small_vgg16")).features[2]
    assert conv.weight.std().item() == pytest.approx((2 / (conv.out_channels * 9)) ** 0.5, rel=0.05)


def test_a_new_architecture_is_one_decorated_function():
    @arch("tiny_test_net", size=(8, 8), channels=1, family="test", summary="one layer")
    def tiny(spec: ModelConfig) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.size[0] * spec.size[1], spec.classes))

    try:
        assert find_arch("tiny_test_net").build is tiny
        assert build_model(native("tiny_test_net"))(torch.rand(1, 1, 8, 8)).shape == (1, 10)
        again = arch("tiny_test_net", size=(9, 9), channels=1, family="test", summary="")
        assert again(tiny) is tiny
        assert find_arch("tiny_test_net").size == (9, 9)
        with pytest.raises(ConfigError, match="'tiny_test_net' already exists: choose another name"):
            again(lambda spec: tiny(spec))
    finally:
        ARCHS._items.pop("tiny_test_net")


def test_a_network_without_a_head_by_name_is_refused():
    with pytest.raises(ConfigError, match="name its last layer `head`"):
        head_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
