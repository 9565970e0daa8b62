"""The static table of architectures: what it holds is what the networks are, and reading it loads nothing heavy."""

import subprocess
import sys

import pytest

from imgclf.models.backbones import ARCHS, all_names, find_arch
from imgclf.models.catalog import list_models, measure


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        "cnn_imagefolder",
        "small_vgg16_bn",
        "resnet50_cifar_lab",
        "efficientnet_lite0",
        "resnet18",
        "mobilenetv3_small_100",
        "vit_tiny_patch16_224",
        "alexnet",
        "squeezenet1_1",
        "regnet_x_400mf",
    ],
)
def test_rows_are_what_the_networks_are(name):
    row = next(info for info in list_models(name) if info.name == name)
    fresh = measure(name)
    assert (row.params, row.size, row.channels) == (fresh.params, fresh.size, fresh.channels)
    assert (row.weights is None) == (fresh.weights is None)  # other timm versions may keep them elsewhere


def test_the_documents_counts_are_listed():
    assert [info.params for info in list_models("cnn_cifar")] == [541_094]
    assert [info.params for info in list_models("lenet") if info.name == "lenet"] == [44_426]


def test_all_of_our_own_are_listed_first_and_names_are_unique():
    find_arch("lenet")
    names = [info.name for info in list_models()]
    own = [arch.name for arch in ARCHS if arch.family != "own"]  # other tests bring networks of their own
    assert names[: len(own)] == own
    assert len(names) == len(set(names)) > 1200


def test_every_name_of_torchvision_and_most_of_timm_are_listed():
    missing = set(all_names()) - {info.name for info in list_models()}
    assert len(missing) < 200  # a newer timm has more


def test_patterns():
    assert {"resnet18", "small_resnet18", "resnet50_cifar_lab"} <= {info.name for info in list_models("ResNet")}
    assert [info.name for info in list_models("small_vgg1?")] == [
        "small_vgg11",
        "small_vgg13",
        "small_vgg16",
        "small_vgg19",
    ]
    assert all(info.name.endswith("_bn") for info in list_models("*_bn"))
    assert list_models("no such model") == []


def test_rows_have_values_that_make_sense():
    for info in list_models():
        assert info.params > 0
        assert min(info.size) >= 16
        assert info.channels in (1, 3)
        assert info.weights is None or "/" in info.weights or info.weights == "imgclf[offline]"


def test_listing_loads_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'timm', 'numpy', 'huggingface_hub'}"
    code = f"import sys; from imgclf.models import catalog; catalog.list_models('r'); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
