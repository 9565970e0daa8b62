"""What OpenVINO computes is what torch computes, image by image, and nothing leaves the machine."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from imgclf import ConfigError, MissingExtra, ModelConfig, PreprocessConfig, build_model
from imgclf.evaluation import openvino
from imgclf.evaluation.inference import batch_outputs
from imgclf.models.features import with_features

CPU = torch.device("cpu")
PIXELS = PreprocessConfig((28, 28), 1, mean=(0.3,), std=(0.2,))
COLORS = PreprocessConfig((16, 16), 3)

pytestmark = [
    pytest.mark.slow,  # to convert a network takes a second
    pytest.mark.skipif(not openvino.is_installed(), reason="OpenVINO is not installed"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))


def lenet():
    torch.manual_seed(0)
    return build_model(ModelConfig("lenet", 10, 1, (28, 28))).eval()


def images(n, preprocess=PIXELS):
    return torch.randint(0, 256, (n, *preprocess.size, preprocess.channels), dtype=torch.uint8)


def network_for(model, preprocess=PIXELS, precision=torch.float32, backend="openvino"):
    return openvino.network_for(model, preprocess, CPU, precision, backend)


def by_torch(model, pixels, preprocess=PIXELS):
    return batch_outputs(model, pixels, preprocess, CPU, torch.float32, 64)


class Own(nn.Module):
    """A network of the user's own: `inner`, a function, then a head."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(3 * 16 * 16, 4)

    def forward(self, images):
        return self.head(self.inner(images).flatten(1))


class Bilinear(nn.Module):
    """A network whose last layer is no linear one."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return self.head(images).mean((2, 3))


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift"])
@pytest.mark.parametrize(("precision", "apart"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_logits_and_features_are_those_of_torch(precision, apart, tta):
    preprocess = PreprocessConfig((28, 28), 1, mean=(0.3,), std=(0.2,), tta=tta)
    model, pixels = lenet(), images(5)
    expected = by_torch(with_features(model), pixels, preprocess)
    got = network_for(model, preprocess, precision)(pixels)
    assert got.shape == expected.shape
    assert (got[:, :10].softmax(1) - expected[:, :10].softmax(1)).abs().max() < apart
    assert (got - expected).abs().max() < apart * expected.abs().max()


@pytest.mark.parametrize(
    "make", [Bilinear, lambda: Own(torch.relu), lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4))]
)
def test_networks_with_any_head_are_computed(make):
    torch.manual_seed(0)
    model, pixels = make().eval(), images(3, COLORS)
    got = network_for(model, COLORS)(pixels)[:, :4]
    assert torch.allclose(got, by_torch(model, pixels, COLORS), atol=1e-5)


def test_an_image_gets_the_same_bits_alone_in_a_batch_and_in_threads():
    network, pixels = network_for(lenet()), images(9)
    together = network(pixels)
    assert torch.equal(torch.cat([network(pixels[i : i + 1]) for i in range(9)]), together)
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: network(pixels)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], together) for i in range(4))


def test_a_network_is_converted_once_and_its_file_serves_other_heads(monkeypatch):
    model, pixels, converted = lenet(), images(3), []
    real = openvino._converted
    monkeypatch.setattr(openvino, "_converted", lambda *given: converted.append(1) or real(*given))
    before = network_for(model)(pixels)
    assert torch.equal(network_for(model)(pixels), before)
    assert torch.equal(network_for(lenet())(pixels), before)  # another one of equal weights: from the file
    assert len(converted) == 1
    with torch.no_grad():
        list(model.parameters())[-1].add_(1)  # the head's bias
    assert torch.allclose(network_for(model)(pixels)[:, :10], before[:, :10] + 1, atol=1e-5)
    assert len(converted) == 1
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.allclose(network_for(model)(pixels), before)
    assert len(converted) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-100], lambda content: b"", lambda content: content[:50] + bytes(8) + content[58:]],
)
def test_a_damaged_file_in_the_cache_is_made_anew(tmp_path, damage):
    pixels = images(3)
    before = network_for(lenet())(pixels)
    (file,) = (tmp_path / "cache" / "openvino").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(network_for(lenet())(pixels), before)
    assert len(file.read_bytes()) == len(whole)


def test_code_that_changed_is_not_answered_from_the_cache():
    torch.manual_seed(0)
    first, pixels = Own(torch.relu).eval(), images(3, COLORS)
    network_for(first, COLORS)
    other = Own(torch.tanh).eval()
    other.load_state_dict(first.state_dict())  # equal weights, and equal names of its layers
    assert torch.allclose(network_for(other, COLORS)(pixels)[:, :4], by_torch(other, pixels, COLORS), atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "named"),
    [
        (torch.special.i0, "aten.i0"),
        (lambda x: x if x.sum() > 0 else -x, "data-dependent"),  # a recorded run would take one way for all images
    ],
)
def test_what_can_not_be_converted_is_left_to_torch_with_one_warning(inner, named, capfd):
    model = Own(inner).eval()
    with pytest.warns(UserWarning, match=f"OpenVINO can't compute Own: .*{named}.*; torch computes it") as caught:
        assert network_for(model, COLORS) is None
    assert len(caught) == 1
    assert network_for(model, COLORS) is None  # without another warning
    assert capfd.readouterr() == ("", "")


def test_what_differs_from_torch_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(openvino, "TOLERANCES", {torch.float32: -1.0})
    with pytest.warns(UserWarning, match="differ from those of torch; torch computes it"):
        assert network_for(lenet()) is None


def test_auto_takes_it_for_large_networks_on_a_processor_where_it_is_installed(monkeypatch):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 2)

        def forward(self, images):
            return self.head(self.conv(images).mean((2, 3)))

    def picked(model, side, name="auto", device=CPU):
        return openvino.pick_backend(name, model, PreprocessConfig((side, side), 3), device)

    model = Large()
    assert (picked(model, 400), picked(Large(), 16)) == ("openvino", "torch")
    assert picked(model, 400, device=torch.device("meta")) == "torch"
    assert picked(model, 400, "torch") == "torch"
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    assert picked(model, 400) == "torch"


def test_wrong_choices_say_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match="backend is 'onnx'; allowed: auto, torch, openvino"):
        network_for(lenet(), backend="onnx")
    with pytest.raises(ConfigError, match="computes on the processor, and the device is cuda: use --device cpu"):
        openvino.pick_backend("openvino", lenet(), PIXELS, torch.device("cuda"))
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    openvino._openvino.cache_clear()
    with pytest.raises(MissingExtra, match=r'pip install "imgclf\[openvino\]"'):
        openvino._openvino()


def test_it_reports_to_nobody_and_writes_only_into_the_cache(tmp_path):
    code = """
import socket, sys
def refuse(*args, **kwargs): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from imgclf import ModelConfig, PreprocessConfig, build_model
from imgclf.evaluation.openvino import network_for
model = build_model(ModelConfig("lenet", 10, 1, (28, 28))).eval()
network = network_for(model, PreprocessConfig((28, 28), 1), torch.device("cpu"), torch.float32, "openvino")
network(torch.zeros(1, 28, 28, 1, dtype=torch.uint8))
assert not any("openvino_telemetry" in name for name in sys.modules)
"""
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    known = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "IMGCLF_CACHE": str(cache)}
    subprocess.run([sys.executable, "-c", code], env=known, check=True, timeout=120, cwd=home)
    assert list(home.iterdir()) == []
    assert {path.parent.name for path in Path(cache).rglob("*") if path.is_file()} == {"openvino"}
