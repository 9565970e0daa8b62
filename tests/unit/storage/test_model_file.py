from __future__ import annotations

import io
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors import torch as safetensors_torch

from imgclf.core.config import AugmentStep, ModelConfig, PreprocessConfig, to_dict
from imgclf.core.errors import ConfigError, ModelFileError
from imgclf.core.tensor_file import MAX_HEADER, pack
from imgclf.models.build import build_model
from imgclf.storage.model_file import FORMAT, Manifest, load_model, raw_tensors, read_manifest, save_model

SPEC = ModelConfig("cnn_zero_to_all", classes=2, channels=1, size=(16, 16))
RECIPE = PreprocessConfig(
    size=(16, 16),
    channels=1,
    mean=(0.1307,),
    std=(0.3081,),
    steps=(AugmentStep("flip", {"p": 0.5}),),
    compose={"transform": {"__class_fullname__": "HorizontalFlip", "p": 0.1, "size": [1, 2]}},
)


def make_manifest(**changes) -> Manifest:
    values = {
        "model": SPEC,
        "classes": ("größe \udcff", "[bold]\x1b"),
        "preprocess": RECIPE,
        "weights": {"asked": "auto", "used": "none", "note": None},
        "metrics": {"test": {"split": "ab12", "accuracy": 0.75}},
        "data": "digits",
        "versions": {"imgclf": "0.1.0"},
        "created": "2026-11-22T12:00:00+00:00",
    }
    return Manifest(**(values | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model(SPEC).eval()


@pytest.fixture(scope="module")
def good(model, tmp_path_factory) -> bytes:
    """The bytes of a sound model file."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_model(path, model, make_manifest())
    return path.read_bytes()


@pytest.fixture
def file(tmp_path, good):
    path = tmp_path / "model.safetensors"
    path.write_bytes(good)
    return path


def forge(model, change=lambda values: None, tensors=None) -> bytes:
    """A file with a right checksum over a manifest that `change` has had its way with."""
    values = to_dict(make_manifest())
    changed = change(values)
    manifest = changed if isinstance(changed, str) else json.dumps(values)
    return b"".join(pack(raw_tensors(model.state_dict() if tensors is None else tensors), manifest))


def raw(header: bytes | str, payload: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + payload


def refusal(path) -> str:
    """The one sentence with which loading refuses the file; it names the file and has no control characters."""
    with pytest.raises(ModelFileError) as info:
        load_model(path)
    message = str(info.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


# What is saved comes back


def test_round_trip(model, file):
    loaded, manifest = load_model(file)
    pixels = torch.rand(4, 1, 16, 16)
    assert manifest == make_manifest()
    assert not loaded.training
    assert torch.equal(loaded(pixels), model(pixels))
    assert read_manifest(file) == manifest


def test_a_folder_stands_for_the_model_file_in_it(model, tmp_path):
    save_model(tmp_path, model, make_manifest())
    assert (tmp_path / "model.safetensors").is_file()
    assert load_model(tmp_path)[1] == read_manifest(str(tmp_path)) == make_manifest()


def test_the_file_is_plain_safetensors_with_two_texts(file):
    with safe_open(file, framework="pt") as stored:
        assert set(stored.metadata()) == {"imgclf", "sha256"}
        assert json.loads(stored.metadata()["imgclf"]) == to_dict(make_manifest())
        assert len(stored.keys()) == 6


def test_equal_models_give_equal_bytes(model, good, tmp_path):
    for _ in range(4):
        save_model(tmp_path / "again", model, make_manifest())
        assert (tmp_path / "again").read_bytes() == good


def test_saving_and_loading_leave_random_numbers_and_the_model_alone(model, tmp_path):
    model.train()
    before = torch.get_rng_state()
    save_model(tmp_path / "m", model, make_manifest())
    load_model(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()


def test_weights_in_any_memory_layout_are_saved(tmp_path):
    model = build_model(SPEC)
    same = torch.arange(10.0)
    state = model.state_dict()
    biases = [name for name, tensor in state.items() if tuple(tensor.shape) == (10,)]
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in biases:
            parameter.data = same[:]
        elif parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
        elif parameter.ndim == 2:
            parameter.data = parameter.data.t().contiguous().t()
    save_model(tmp_path / "m", model, make_manifest())
    loaded, _ = load_model(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_buffers_and_channels_survive(tmp_path):
    spec = ModelConfig("speednet_small", classes=3, channels=4, size=(32, 32))
    model = build_model(spec)
    model(torch.rand(4, 4, 32, 32))  # moves the running statistics
    save_model(tmp_path / "m", model, Manifest(spec, ("a", "b", "c"), PreprocessConfig(size=(32, 32), channels=4)))
    loaded, manifest = load_model(tmp_path / "m")
    pixels = torch.rand(2, 4, 32, 32)
    assert torch.equal(loaded(pixels), model.eval()(pixels))
    assert manifest.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest.created.endswith("+00:00")


def test_reading_the_manifest_needs_no_torch(file):
    code = (
        "import sys; from imgclf.storage.model_file import read_manifest; read_manifest(sys.argv[1]);"
        "sys.exit(', '.join({'torch', 'numpy', 'timm', 'torchvision', 'safetensors'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@given(
    classes=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=2, unique=True).map(tuple),
    data=st.text(max_size=5),
    metrics=st.dictionaries(st.text(max_size=3), st.none() | st.booleans() | st.integers() | st.text(max_size=3)),
)
def test_any_names_and_results_round_trip(model, tmp_path_factory, classes, data, metrics):
    path = tmp_path_factory.getbasetemp() / "names.safetensors"
    manifest = make_manifest(classes=classes, data=data, metrics={"valid": metrics})
    save_model(path, model, manifest)
    assert load_model(path)[1] == manifest


# Saving


def test_the_mode_follows_the_umask(model, tmp_path):
    old = os.umask(0o027)
    try:
        save_model(tmp_path / "m", model, make_manifest())
    finally:
        os.umask(old)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_file(model, file, good, monkeypatch, call, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            save_model(file, model, make_manifest(data="another"))
    assert file.read_bytes() == good
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_not_saved(file, good, value):
    model = build_model(SPEC)
    name, parameter = list(model.named_parameters())[1]
    parameter.data[3] = value
    with pytest.raises(ModelFileError, match=f"not saved: the tensor '{name}' holds NaN"):
        save_model(file, model, make_manifest())
    assert file.read_bytes() == good


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, arch="lenet"), "do not fit lenet with 2 classes"),
        (replace(SPEC, size=(28, 28)), r"float32 \(2, 20\), expected float32 \(2, 320\)"),
        (replace(SPEC, arch="no_such_net"), "no_such_net"),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(model, tmp_path, spec, message):
    with pytest.raises(ModelFileError, match=message):
        save_model(tmp_path / "m", model, make_manifest(model=spec))
    assert os.listdir(tmp_path) == []


def test_half_precision_is_not_saved_as_if_it_were_single(tmp_path):
    with pytest.raises(ModelFileError, match=r"float16 .* expected float32"):
        save_model(tmp_path / "m", build_model(SPEC).half(), make_manifest())


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_manifest_that_is_not_json_is_not_saved(model, tmp_path, value):
    with pytest.raises(ModelFileError, match="not JSON"):
        save_model(tmp_path / "m", model, make_manifest(metrics={"test": {"loss": value}}))


def test_a_manifest_that_could_not_be_read_is_not_saved(model, tmp_path):
    with pytest.raises(ModelFileError, match="header of"):
        save_model(tmp_path / "m", model, make_manifest(data="x" * MAX_HEADER))


# Damage


@pytest.mark.slow
def test_every_truncation_is_refused(file, good):
    for length in {*range(0, len(good), 97), *range(10), len(good) - 1}:
        file.write_bytes(good[:length])
        assert refusal(file).startswith("truncated: ")


def flips(data: bytes):
    """Every bit of the length, one bit of each byte of the header, and of every 31st byte after it."""
    header = 8 + int.from_bytes(data[:8], "little")
    yield from ((position, bit) for position in range(8) for bit in range(8))
    yield from ((position, position % 8) for position in (*range(8, header), *range(header, len(data), 31)))


@pytest.mark.slow
def test_a_flipped_bit_is_refused(file, good):
    survivors = []
    with file.open("r+b") as stream:
        for position, bit in flips(good):
            stream.seek(position)
            stream.write(bytes([good[position] ^ 1 << bit]))
            stream.flush()
            try:
                load_model(file)
            except ModelFileError:
                pass
            else:
                survivors.append((position, bit))
            stream.seek(position)
            stream.write(good[position : position + 1])
    assert survivors == []


def test_a_damaged_weight_is_called_corrupt(file, good):
    file.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    assert refusal(file).startswith("corrupt: the checksum does not match")
    file.write_bytes(good.replace(b"digits", b"digitz"))
    assert refusal(file).startswith("corrupt: the checksum does not match")
    file.write_bytes(good + b"\0\0")
    assert refusal(file).startswith("corrupt: ")


@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", raw("{"), raw('{"a":')[:12]]))
def test_random_bytes_are_refused(tmp_path_factory, prefix, data):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(prefix + data)
    refusal(path)


@given(data=st.data())
def test_random_edits_are_refused(tmp_path_factory, good, data):
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, min(start + 20, len(good))))
    edit = data.draw(st.binary(max_size=20).filter(lambda edit: edit != good[start:end]))
    path = tmp_path_factory.getbasetemp() / "edited"
    path.write_bytes(good[:start] + edit + good[end:])
    refusal(path)


# Other files


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def foreign_files(victim):
    torch_zip, legacy, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"a": Payload(victim)}, torch_zip)
    torch.save({"a": Payload(victim)}, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([Payload(victim)], dtype=object), allow_pickle=True)
    yield from (("zip", torch_zip.getvalue()), ("pickle", legacy.getvalue()), ("NumPy", array.getvalue()))
    yield from (("pickle", pickle.dumps(Payload(victim), protocol)) for protocol in (2, 3, 4, 5))
    yield "", pickle.dumps(Payload(victim), 0)


def test_files_of_other_formats_are_never_opened(tmp_path):
    victim = tmp_path / "victim"
    file = tmp_path / "model.safetensors"
    for kind, data in foreign_files(victim):
        file.write_bytes(data)
        message = refusal(file)
        assert message.startswith("is not a safetensors file")
        assert kind in message
        assert "can run code" in message
    assert not victim.exists()


def test_a_path_without_a_model_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none").startswith("no such model file")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: no such model file"):
        load_model(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "file" / "below").startswith("cannot be read")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").startswith("is not a regular file")


def test_control_characters_in_the_name_are_escaped(tmp_path):
    with pytest.raises(ModelFileError, match=r"a\\x1b\[1m: "):
        load_model(tmp_path / "a\x1b[1m")


def test_plain_safetensors_are_no_model(model, file):
    file.write_bytes(safetensors_torch.save(model.state_dict(), metadata={"format": "pt"}))
    assert refusal(file).startswith("has no imgclf manifest")


# Hostile headers

TENSOR = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
META = '"__metadata__":{"imgclf":"{}","sha256":"0"}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff" * 7 + b"\0{", "has a header of "),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "has a header of 8,000,001 bytes"),
        (raw('{"a":' * 100_000), "corrupt: the header is nested too deeply"),
        (raw('{"a":' + "[" * 100_000), "corrupt: the header is nested too deeply"),
        (raw('{"a":' + "9" * 5000 + "}"), "corrupt: the header is not JSON"),
        (raw("{'a':1}"), "corrupt: the header is not JSON"),
        (raw('{"a":NaN}'), "corrupt: the header is not JSON"),
        (raw('{"a":1e999}'), "corrupt: the header is not JSON"),
        (raw(b'{"\xff":1}'), "corrupt: the header is not JSON"),
        (raw(f"{{{META},{TENSOR.replace('[0,4]', '[-4,0]')}}}", bytes(8)), "corrupt: the header's entry for the"),
        (raw(f"{{{META},{TENSOR.replace('[0,4]', '[0,4.5]')}}}", bytes(5)), "corrupt: the header's entry for the"),
        (raw(f"{{{META},{TENSOR.replace('[0,4]', '[0,4,4]')}}}", bytes(4)), "corrupt: the header's entry for the"),
        (raw(f"{{{META},{TENSOR.replace('[1]', '1')}}}", bytes(4)), "corrupt: the header's entry for the"),
        (raw(f"{{{META},{TENSOR.replace('F32', 'F33')}}}", bytes(4)), "corrupt: the header's entry for the"),
        (raw(f"{{{META},{TENSOR.replace('shape', 'form')}}}", bytes(4)), "corrupt: the header's entry for the"),
        (raw('{"__metadata__":{"imgclf":"{}","sha256":"0","x":"y"}}'), "corrupt: the metadata"),
        (raw('{"__metadata__":{"imgclf":"{}"}}'), "corrupt: the metadata"),
        (raw('{"__metadata__":{"imgclf":"\\u00e9","sha256":"0"}}'), "corrupt: the metadata"),
        (raw('{"__metadata__":{"imgclf":{},"sha256":"0"}}'), "has no imgclf manifest"),
        (raw('{"__metadata__":[]}'), "has no imgclf manifest"),
        (raw('{"__metadata__":{"imgclf":"[]","sha256":"0"}}'), "corrupt: the manifest is not a JSON object"),
        (raw('{"__metadata__":{"imgclf":"{","sha256":"0"}}'), "corrupt: the manifest is not JSON"),
        (raw(f"{{{META}}}"), "corrupt: the checksum does not match"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, data, message):
    (tmp_path / "m").write_bytes(data)
    assert refusal(tmp_path / "m").startswith(message)


@pytest.mark.slow
def test_twenty_thousand_tensors_are_refused(tmp_path):
    tensors = {f"layer.{index}": torch.zeros(1) for index in range(20_000)}
    (tmp_path / "m").write_bytes(forge(None, tensors=tensors))
    message = refusal(tmp_path / "m")
    assert "is missing" in message
    assert message.endswith("and 20,003 more")


# Forged files: the checksum is right, the content is not


def put(path: str, value):
    def change(values):
        *parents, last = path.split(".")
        for name in parents:
            values = values[name]
        values[last] = value

    return change


def drop(path: str):
    def change(values):
        *parents, last = path.split(".")
        for name in parents:
            values = values[name]
        del values[last]

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            put("format", 2),
            f"made by imgclf 0.1.0 with format 2, this version (0.1.0) reads format {FORMAT}: train the model again",
        ),
        (put("format", True), "manifest.format is True"),
        (put("format", "1"), "manifest.format is '1'"),
        (put("classes", ["a"]), "manifest.classes has 1 names; expected 2 (model.classes)"),
        (put("classes", ["a", "a"]), "manifest.classes is ('a', 'a')"),
        (put("classes", ["a", 1]), "manifest.classes is"),
        (put("classes", "ab"), "manifest.classes is 'ab'"),
        (put("model", 5), "manifest.model is 5"),
        (put("model.size", [10**9, 16]), "ModelConfig.size is"),
        (put("model.size", 16), "ModelConfig.size is 16"),
        (put("model.classes", 10**9), "ModelConfig.classes is"),
        (put("model.channels", 3), "manifest.preprocess.channels is 1"),
        (put("model.dropout", 1.5), "ModelConfig.dropout is 1.5"),
        (put("model.extra", 1), "manifest.model.extra is not a field"),
        (drop("model.dropout"), "manifest.model.dropout is missing"),
        (drop("preprocess"), "manifest.preprocess is missing"),
        (drop("preprocess.interpolation"), "manifest.preprocess.interpolation is missing"),
        (put("preprocess.std", [0]), "PreprocessConfig.std is"),
        (put("preprocess.mean", 0), "PreprocessConfig.mean is 0"),
        (put("preprocess.resize_mode", ["crop"]), "PreprocessConfig.resize_mode is"),
        (put("preprocess.steps", [{"op": "os.system"}]), "AugmentStep.op is 'os.system'"),
        (put("preprocess.steps", ["flip"]), "AugmentStep is 'flip'"),
        (put("preprocess.steps", 3), "PreprocessConfig.steps is 3"),
        (put("preprocess.compose", "eval"), "PreprocessConfig.compose is 'eval'"),
        (put("weights", []), "manifest.weights is []"),
        (put("metrics", None), "manifest.metrics is None"),
        (put("versions", {"imgclf": 1}), "manifest.versions is"),
        (put("versions", {}), "manifest.versions is {}; expected a table of texts, with imgclf"),
        (put("created", 0), "manifest.created is 0"),
        (put("data", None), "manifest.data is None"),
        (put("honesty", 1), "manifest.honesty is not a field"),
        (put("calibration", 1), "manifest.calibration is 1; expected a table of temperature"),
        (put("calibration", {"temperature": 0.0, "images": 1, "note": ""}), "manifest.calibration is"),
        (put("ood", {}), "manifest.ood is {}"),
        (put("ood", {"shapes": {"basis": [0]}}), "manifest.ood is"),
        (put("ood", {"shapes": {"basis": [2]}}), "manifest.ood is"),
        (lambda _: '{"format":' + "[" * 50_000, "corrupt: the manifest is nested too deeply"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_field(model, tmp_path, change, named):
    (tmp_path / "m").write_bytes(forge(model, change))
    assert refusal(tmp_path / "m").startswith(named)
    with pytest.raises(ModelFileError):
        read_manifest(tmp_path / "m")


FIELDS = [
    *to_dict(make_manifest()),
    *(f"model.{name}" for name in to_dict(SPEC)),
    *(f"preprocess.{name}" for name in to_dict(RECIPE)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_a_manifest_takes_a_list_of_classes_and_numbers_of_numpy_and_refuses_other_kinds(model, tmp_path):
    manifest = make_manifest(classes=["a", "b"], metrics={"test": {"accuracy": np.float32(0.5)}})
    save_model(tmp_path / "m", model, manifest)
    assert read_manifest(tmp_path / "m").metrics == {"test": {"accuracy": 0.5}}
    with pytest.raises(ModelFileError, match=r"manifest\.model is 'lenet'; expected a ModelConfig"):
        make_manifest(model="lenet")
    with pytest.raises(ConfigError, match="manifest is str; expected Manifest"):
        save_model(tmp_path / "m", model, "lenet")


@given(field=st.sampled_from(FIELDS), value=JSON)
def test_any_value_in_any_field_loads_or_is_refused(model, tmp_path_factory, field, value):
    path = tmp_path_factory.getbasetemp() / "field"
    path.write_bytes(forge(model, put(field, value)))
    try:
        loaded, manifest = load_model(path)
    except ModelFileError:
        return
    assert manifest == read_manifest(path)
    assert loaded(torch.zeros(1, 1, *manifest.model.size)).shape == (1, 2)


@pytest.mark.parametrize(
    "arch",
    [
        "hf_hub:evil/model",
        "hf-hub:evil/model",
        "timm:hf_hub:evil",
        "local-dir:/tmp/x",
        "/etc/passwd",
        "../lenet",
        "evil/model",
        "https://evil.example/model",
        "le net",
        "lenet\n",
        ".lenet",
        "",
        "timm:",
        "torchvision:os.system",
        "no_such_architecture",
    ],
)
def test_an_architecture_outside_the_allow_list_is_refused(model, tmp_path, monkeypatch, arch):
    def no_network(*_, **__):
        raise AssertionError("a model file must not reach for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    (tmp_path / "m").write_bytes(forge(model, put("model.arch", arch)))
    assert "arch" in refusal(tmp_path / "m")


def test_a_newer_format_says_who_wrote_it(model, tmp_path):
    def newer(values):
        values |= {"format": 999, "versions": {"imgclf": "9.1"}, "unheard": {}}

    (tmp_path / "m").write_bytes(forge(model, newer))
    expected = f"made by imgclf 9.1 with format 999, this version (0.1.0) reads format {FORMAT}: upgrade imgclf"
    assert refusal(tmp_path / "m") == expected
    with pytest.raises(ModelFileError, match="upgrade imgclf"):
        read_manifest(tmp_path / "m")


def changed_tensors(model, kind: str):
    tensors = dict(model.state_dict())
    name = list(tensors)[-1]
    match kind:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["backdoor"] = torch.zeros(3)
        case "shape":
            tensors[name] = torch.zeros(5)
        case "dtype":
            tensors[name] = tensors[name].double()
        case "nan":
            tensors[name] = torch.full_like(tensors[name], torch.nan)
        case "inf":
            tensors[name] = torch.full_like(tensors[name], -torch.inf)
    return name, tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "{name} is missing"),
        ("extra", "backdoor is not part of the network"),
        ("shape", "{name} is float32 (5), expected float32 (2)"),
        ("dtype", "{name} is float64 (2), expected float32 (2)"),
        ("nan", "the tensor '{name}' holds NaN"),
        ("inf", "the tensor '{name}' holds NaN"),
    ],
)
def test_wrong_tensors_are_refused_by_name(model, tmp_path, kind, message):
    name, tensors = changed_tensors(model, kind)
    (tmp_path / "m").write_bytes(forge(model, tensors=tensors))
    assert message.format(name=name) in refusal(tmp_path / "m")


def test_a_class_more_than_the_head_has_is_refused(model, tmp_path):
    def one_more(values):
        values["classes"] = ["a", "b", "c"]
        values["model"]["classes"] = 3

    (tmp_path / "m").write_bytes(forge(model, one_more))
    assert "do not fit cnn_zero_to_all with 3 classes" in refusal(tmp_path / "m")


def test_a_small_file_cannot_ask_for_a_large_network(model, tmp_path):
    def huge(values):
        values["model"] |= {"arch": "lenet", "size": [4096, 4096]}  # two billion weights

    lenet = build_model(replace(SPEC, arch="lenet"))
    (tmp_path / "m").write_bytes(forge(lenet, huge))
    assert "expected float32 (120, 16679056)" in refusal(tmp_path / "m")


@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_1"])
def test_networks_that_only_torchvision_has_are_saved_and_loaded(tmp_path, name):
    spec = ModelConfig(name, classes=2, channels=3, size=(32, 32))
    original = build_model(spec).eval()
    recipe = replace(RECIPE, channels=3, size=(32, 32), mean=(0.5,), std=(0.5,))
    save_model(tmp_path, original, make_manifest(model=spec, preprocess=recipe))
    before = torch.get_rng_state()
    loaded, manifest = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert manifest.model == spec
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixels), original(pixels))


ANY_TENSORS = st.dictionaries(
    st.text(max_size=8),
    st.tuples(
        st.sampled_from(
            ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
        ),
        st.lists(st.integers(0, 3), max_size=4),
    ),
    max_size=6,
)


@given(ANY_TENSORS)
def test_safetensors_reads_what_is_packed_and_every_tensor_is_aligned(kinds):
    tensors = {
        name: torch.arange(math.prod(shape)).reshape(shape).to(getattr(torch, dtype))
        for name, (dtype, shape) in kinds.items()
    }
    data = b"".join(pack(raw_tensors(tensors), "{}"))
    loaded = safetensors_torch.load(data)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    for name, tensor in tensors.items():
        assert (size + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_tied_and_channels_last_weights_are_stored_in_full():
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    data = b"".join(pack(raw_tensors({"a": weight, "b": weight}), "{}"))
    loaded = safetensors_torch.load(data)
    assert loaded.keys() == {"a", "b"}
    assert all(torch.equal(tensor, weight) for tensor in loaded.values())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0)[::2],
        torch.ones(1).expand(5),
        torch.ones(1, 1).expand(5, 3),
        torch.arange(12).reshape(4, 3)[:, 1],
        torch.arange(12).reshape(4, 3)[:, :1],
        torch.tensor([True, False, True])[::2],
        torch.complex(torch.ones(3), torch.arange(3.0)).conj().imag,
    ],
    ids=["steps", "one value", "one value twice over", "a column", "a thin matrix", "flags", "negated"],
)
def test_weights_are_stored_however_they_lie(tensor):
    loaded = safetensors_torch.load(b"".join(pack(raw_tensors({"a": tensor}), "{}")))["a"]
    assert torch.equal(loaded, tensor)


def test_a_type_that_no_model_file_holds_is_named():
    with pytest.raises(ModelFileError, match=r"tensor 'phase' is complex64; expected one of float64, float32"):
        raw_tensors({"phase": torch.zeros(2, dtype=torch.complex64)})
