"""Networks of the user's own: in which forms they come, what is found out about them, and whose code is run."""

import functools
import json

import pytest
import torch
from torch import nn

from imgclf import Classifier
from imgclf.core.config import ModelConfig, PreprocessConfig, to_dict
from imgclf.core.errors import ConfigError, ModelFileError, UnknownName
from imgclf.core.tensor_file import pack
from imgclf.models import own
from imgclf.models.build import build_model, empty_network, head_of
from imgclf.models.own import named_network, own_arch, using
from imgclf.models.registry import ARCHS, arch
from imgclf.models.weights import load_weights
from imgclf.runtime.compute import memory_format_of
from imgclf.storage.model_file import Manifest, load_model, raw_tensors

SPEC = ModelConfig("own:Net", 3, 1, (8, 8))


class Net(nn.Module):
    """As tutorials write it."""

    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.fc1 = nn.Linear(width * 64, 8)
        self.fc2 = nn.Linear(8, num_classes)

    def forward(self, x):
        n = x.size(0)
        return self.fc2(self.fc1(self.conv(x).relu().view(n, -1)).relu())


class Flat(Net):
    def forward(self, x):
        return self.fc2(self.fc1(self.conv(x).relu().flatten(1)).relu())


def from_spec(spec):
    return Net(spec.classes)


class Tupled(nn.Module):
    def forward(self, x):
        return x, x


def from_names(classes, *, channels):
    return Net(classes * channels)


FORMS = [
    Net(3),
    Net,
    lambda: Net(3),
    lambda spec: Net(spec.classes),
    lambda s: Net(s.classes),
    functools.partial(Net, num_classes=3),
    functools.partial(from_names, channels=1),
    from_spec,
    from_names,
]


@pytest.mark.parametrize("made", FORMS, ids=lambda made: own.name_of(made))
def test_any_form_gives_a_network_with_a_score_for_each_class(made):
    network = own_arch(made).build(SPEC)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert head_of(network) is network.fc2
    assert network is not made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (7, "arch is 7; expected the name"),
        (Net(5), "returns 5 scores per image; expected 3"),
        (lambda a, b: None, r"needs a, b, which imgclf can't fill in"),
        (nn.Linear, "needs in_features, out_features"),
        (lambda: "net", "returns str; expected a torch.nn.Module"),
        (lambda: [][0], "can't be created: IndexError"),
        (lambda n: nn.Linear(64, n), r"its n is an imgclf.ModelConfig; a parameter called classes gets their number"),
        (nn.Sequential(Net(3), nn.Softmax(1)), "ends in a softmax"),
        (Net(3, width=5).add_module, "needs name, module"),
        (dict, "own:dict can't be used; expected a torch.nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Tupled()), "returns tuple; expected a tensor of scores"),
    ],
)
def test_what_is_no_such_network_is_said(made, said):
    with pytest.raises(ConfigError, match=said):
        own_arch(made).build(SPEC)


def test_a_size_that_does_not_fit_is_said():
    with using(own_arch(Net)), pytest.raises(ConfigError, match=r"images of 9x9 .* the size that it was made for"):
        build_model(ModelConfig("own:Net", 3, 1, (9, 9)))


def test_scores_of_another_shape_are_said():
    with pytest.raises(RuntimeError, match="returns 2×1×8×3 values for two images; expected 2×classes"):
        own_arch(nn.Linear(8, 3)).build(SPEC)


def test_only_one_that_is_given_as_pretrained_has_pretrained_weights():
    with using(own_arch(Net)), pytest.raises(ConfigError, match="your own network: set pretrained=True"):
        load_weights(build_model(SPEC), SPEC, "pretrained")


@pytest.mark.parametrize(
    "made",
    [
        lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False)),
        lambda classes: nn.Sequential(nn.Conv2d(1, classes, 8), nn.Flatten()),
    ],
    ids=["linear", "convolution"],
)
def test_a_file_with_other_classes_leaves_any_last_layer_fresh(tmp_path, made):
    torch.save(made(5).state_dict(), tmp_path / "five.pth")
    with using(own_arch(made)):
        used = load_weights(model := build_model(SPEC), SPEC, str(tmp_path / "five.pth"))
    assert used.head == "fresh"
    assert head_of(model).weight.std() <= 0.0101


def test_a_last_convolution_is_replaced_as_a_linear_layer_is():
    given = nn.Sequential(nn.Conv2d(1, 5, 8, bias=False), nn.Flatten())
    with using(own_arch(given, pretrained=True)):
        model = build_model(SPEC)
    assert (head_of(model).out_channels, head_of(model).bias) == (3, None)


def test_a_mistake_in_its_code_is_said():
    class Mistaken(Flat):
        def forward(self, images):
            return images.shape.color

    with using(own_arch(Mistaken)), pytest.raises(ConfigError, match=r"own:Mistaken fails: AttributeError: .*color"):
        build_model(ModelConfig("own:Mistaken", 3, 1, (8, 8)))


def test_only_a_network_that_needs_it_is_kept_contiguous():
    kept, turned = (own_arch(made).build(SPEC) for made in (Net, Flat))
    assert [memory_format_of(network) for network in (kept, turned)] == [torch.contiguous_format, torch.channels_last]
    images = torch.rand(4, 8, 8, 1).permute(0, 3, 1, 2)  # as the batches of training lie
    kept.to(memory_format=memory_format_of(kept))(images).sum().backward()


def test_it_is_trained_saved_and_loaded_with_its_code_and_may_be_defined_again(make_source, tmp_path):
    source = make_source()
    for _ in range(2):  # a cell of a notebook that runs twice
        again = type("Net", (Net,), {})
        classifier = Classifier(again, size=8).fit(source, epochs=1)
    assert classifier.model_config_.arch == "own:Net"
    classifier.save(tmp_path / "net.safetensors")
    with pytest.raises(ModelFileError, match=r"own:Net is a custom network.*arch=Net"):
        Classifier.load(tmp_path / "net.safetensors")
    loaded = Classifier.load(tmp_path / "net.safetensors", arch=Net)
    assert all(map(torch.equal, classifier.model_.state_dict().values(), loaded.model_.state_dict().values()))
    loaded.save(tmp_path / "again.safetensors")
    with pytest.raises(ModelFileError, match="do not fit"):
        Classifier.load(tmp_path / "net.safetensors", arch=functools.partial(Net, width=5))
    with pytest.raises(UnknownName, match="contain no code"):
        build_model(SPEC)


def test_a_pretrained_one_is_gone_on_from_with_a_new_last_layer():
    given = Net(5)
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with using(own_arch(given, pretrained=True)):
        model = build_model(SPEC)
        used = load_weights(model, SPEC, "auto")
        assert {name: tensor.shape for name, tensor in empty_network(SPEC).state_dict().items()} == {
            name: tensor.shape for name, tensor in model.state_dict().items()
        }
    assert (used.used, used.head) == ("pretrained", "fresh")
    assert torch.equal(model.conv.weight, given.conv.weight)
    assert model.fc2.out_features == 3
    assert torch.equal(model.fc2.prior, given.fc2.weight)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own:evil", "contain no code"),
        ("own:evil.py", "contain no code"),
        ("evil", "no architecture is called"),
        ("evil.py:evil", "never a hub address"),
        ("./evil.py", "never a hub address"),
    ],
)
def test_a_file_of_somebody_else_runs_nothing(name, said, in_folder, monkeypatch):
    (in_folder / "evil.py").write_text("open('ran', 'w')\nevil = None\n")
    monkeypatch.syspath_prepend(str(in_folder))
    values = to_dict(Manifest(SPEC, ("a", "b", "c"), PreprocessConfig((8, 8), 1)))
    values["model"]["arch"] = name
    (in_folder / "evil.safetensors").write_bytes(b"".join(pack(raw_tensors(Net(3).state_dict()), json.dumps(values))))
    for load in (load_model, Classifier.load):
        with pytest.raises(ModelFileError, match=said):
            load(in_folder / "evil.safetensors")
    assert not (in_folder / "ran").exists()


def test_a_file_that_the_user_names_is_imported(in_folder):
    (in_folder / "beside_own.py").write_text("from torch import nn\nLayer = nn.Linear\n")
    (in_folder / "mine.py").write_text("from beside_own import Layer\nnet = Layer(1, 2)\n")
    assert isinstance(named_network("mine.py:net"), nn.Linear)
    assert named_network("resnet18") is named_network("timm:resnet18") is None
    (in_folder / "broken.py").write_text("1 / 0")
    for text, said in (
        ("mine.py:nett", "has no nett"),
        ("a.py:net", "file a.py not found"),
        ("mine.py", r"expected mine\.py:NAME"),
        ("broken.py:net", "ZeroDivision"),
    ):
        with pytest.raises(ConfigError, match=said):
            named_network(text)


def test_an_architecture_may_be_registered_again_by_the_same_function_alone(monkeypatch):
    monkeypatch.setattr(ARCHS, "_items", dict(ARCHS._items))
    register = arch("mine", size=(8, 8), channels=1, family="mine", summary="")
    for width in (4, 5):

        @register
        def build(spec, width=width):
            return Net(spec.classes, width)

    assert build_model(ModelConfig("mine", 3, 1, (8, 8))).conv.out_channels == 5
    with pytest.raises(ConfigError, match="already exists"):
        register(from_spec)
