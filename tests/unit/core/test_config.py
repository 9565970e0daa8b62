"""What was asked for: checked when made, and to JSON and back."""

import json
import math
from dataclasses import fields

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import (
    BACKENDS,
    INTERPOLATIONS,
    OPTIMIZERS,
    PRECISIONS,
    RESIZE_MODES,
    SCHEDULES,
    STEPS,
    AugmentStep,
    DataConfig,
    ExperimentConfig,
    Levels,
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
    parse_duration,
    parse_size,
    parse_split,
    to_dict,
)
from imgclf.core.errors import ConfigError
from imgclf.core.options import json_schema, option_fields

KINDS = (AugmentStep, Levels, PreprocessConfig, ModelConfig, TrainConfig, DataConfig, ExperimentConfig)
TWELVE = Levels("integer", 0, 4095)
REQUIRED = {
    AugmentStep: {"op": "flip"},
    Levels: {"kind": "float", "low": 0, "high": 1},
    ModelConfig: {"arch": "lenet", "classes": 2},
}

BAD = [
    (AugmentStep, "op", ["blur", None], "resized_crop"),
    (AugmentStep, "params", [3], "a table"),
    (PreprocessConfig, "size", [(0, 8), (8,), (8, 8, 8), [8, 8], 8, (8, 5000), (8.0, 8)], "(height, width)"),
    (PreprocessConfig, "channels", [0, 65, 1.0, True], "1 to 64"),
    (PreprocessConfig, "resize_mode", ["stretch"], "crop, pad, squash"),
    (PreprocessConfig, "interpolation", ["cubic"], "bicubic"),
    (PreprocessConfig, "crop_pct", [0.05, 2.1, math.nan, "1"], "0.1 to 2"),
    (
        PreprocessConfig,
        "mean",
        [(0.5, 0.5), (), 0.5, ("a",) * 3, (0.5, math.nan, 0.5), (math.inf,) * 3, None],
        "one number per channel",
    ),
    (PreprocessConfig, "std", [(0.0,) * 3, (0.5, 0.5, -1.0), (0.5, 0.5)], "one number per channel"),
    (PreprocessConfig, "steps", [[AugmentStep("flip")], ("flip",)], "a tuple of AugmentStep"),
    (PreprocessConfig, "compose", ["flip"], "a table"),
    (PreprocessConfig, "tta", ["flip"], "none, mirror, mirror-shift"),
    (PreprocessConfig, "levels", [[TWELVE], (TWELVE, TWELVE), ((0, 1),)], "a tuple of Levels, each of another kind"),
    (Levels, "kind", ["half"], "integer, float"),
    (Levels, "low", [math.nan, -math.inf, "0"], "a number that is finite"),
    (Levels, "high", [math.nan, math.inf], "a number that is finite"),
    (ModelConfig, "arch", ["", 3], "architecture"),
    (ModelConfig, "classes", [0, 1.5, True], "1 to 1,000,000"),
    (ModelConfig, "channels", [0], "1 to 64"),
    (ModelConfig, "size", [(0, 1)], "(height, width)"),
    (ModelConfig, "dropout", [1.0, -0.1], "0 to below 1"),
    (TrainConfig, "epochs", [-1, 1.5, 100_001], "0 (a linear probe only) to 100,000"),
    (TrainConfig, "probe", [0, "yes"], "true or false"),
    (TrainConfig, "batch_size", [-1, "32"], "1 or more"),
    (TrainConfig, "lr", [0, -1.0, math.nan, math.inf], "above 0"),
    (TrainConfig, "optimizer", ["lion"], "sgd, adam, adamw"),
    (TrainConfig, "momentum", [1.0, -0.1], "0 to below 1"),
    (TrainConfig, "nesterov", [1, "yes"], "true or false"),
    (TrainConfig, "weight_decay", [-1.0, 11.0], "0 to 10"),
    (TrainConfig, "schedule", ["linear"], "constant, step, cosine, onecycle"),
    (TrainConfig, "step_epochs", [0], "1 or more"),
    (TrainConfig, "gamma", [0.0, 1.5], "above 0, to 1"),
    (TrainConfig, "warmup_epochs", [-1.0, math.nan], "0 or more"),
    (TrainConfig, "label_smoothing", [1.0, -0.1], "0 to below 1"),
    (TrainConfig, "clip_norm", [-1.0], "0 (off) or more"),
    (TrainConfig, "freeze_epochs", [-1, 0.5], "0 or more"),
    (TrainConfig, "freeze_norm", [0, "yes"], "true or false"),
    (TrainConfig, "freeze_stages", [-1, 12, "auto"], "0 (none) to 11"),
    (TrainConfig, "fast_step", [1, "yes"], "true or false"),
    (TrainConfig, "patience", [-1], "0 (off) or more"),
    (TrainConfig, "ema", [-0.1, 1.0, "much"], "0 (off) to below 1"),
    (TrainConfig, "head_scale", [0, 1.1, "soft"], "above 0, to 1"),
    (TrainConfig, "class_weights", ["auto"], "none, effective, balanced"),
    (TrainConfig, "epoch_steps", [0, 1.5], "1 or more"),
    (TrainConfig, "minutes", [0, -1, "10"], "above 0"),
    (TrainConfig, "layer_decay", [0, 1.1], "above 0, to 1"),
    (TrainConfig, "drop_last", [0], "true or false"),
    (TrainConfig, "precision", ["fp8"], "auto, fp32, bf16, fp16"),
    (TrainConfig, "backend", ["onnx", None], "auto, torch, openvino"),
    (TrainConfig, "device", ["gpu", "cuda:", "cuda:x", None], "cuda:N"),
    (TrainConfig, "compile", [True], "auto, on, off"),
    (TrainConfig, "backend", ["onnx", True], "auto, torch, openvino"),
    (TrainConfig, "checkpoint_every", [0.5, "10m"], "1 or more seconds"),
    (TrainConfig, "workers", [-1, 257], "0 to 256"),
    (TrainConfig, "seed", [-1, 2**63, 0.5], "0 to 9,223,372,036,854,775,807"),
    (DataConfig, "on_unreadable", ["ignore"], "skip, error"),
    (DataConfig, "allow_unreadable", [-0.1, 1.1], "0 to 1"),
    (DataConfig, "max_pixels", [0], "1 or more"),
    (DataConfig, "cache", ["gpu"], "auto, device, ram, disk, off"),
    (ExperimentConfig, "arch", [""], "architecture"),
    (ModelConfig, "members", [0, 101], "1 to 100"),
    (ExperimentConfig, "init", ["", 3], "a run folder or a model file"),
    (ExperimentConfig, "resize_mode", ["stretch"], "crop, pad, squash"),
    (ExperimentConfig, "split", [(0.5, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0.0)], "sum to 1"),
    (ExperimentConfig, "mirror", ["no"], "true or false"),
    (ExperimentConfig, "recolor", [2], "true or false"),
    (ExperimentConfig, "tta", ["flip"], "none, mirror, mirror-shift"),
    (ExperimentConfig, "keep", ["none"], "best, all"),
    (ExperimentConfig, "weights", ["", 3], "pretrained"),
    (ExperimentConfig, "dropout", [1.0], "0 to below 1"),
    (ExperimentConfig, "size", [(0, 8), 8], "(height, width)"),
    (ExperimentConfig, "channels", [0], "1 to 64"),
    (ExperimentConfig, "mean", [0.5, ("a",)], "one number per channel"),
    (ExperimentConfig, "std", [(0.0,)], "one number per channel"),
    (ExperimentConfig, "augment", ["", 3], "a preset"),
    (DataConfig, "data_dir", ["", 3], "a folder"),
    (DataConfig, "split_file", [""], "a CSV file"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "allowed"),
    [(kind, name, value, allowed) for kind, name, values, allowed in BAD for value in values],
)
def test_a_check_names_the_field_what_was_given_and_what_is_allowed(kind, name, value, allowed):
    with pytest.raises(ConfigError) as caught:
        kind(**{**REQUIRED.get(kind, {}), name: value})
    message = str(caught.value)
    assert message.startswith(f"{kind.__name__}.{name} is {value!r}; allowed: ")
    assert allowed in message


def test_nesterov_needs_a_momentum():
    with pytest.raises(ConfigError, match=r"TrainConfig\.nesterov is True; allowed: only with a momentum above 0"):
        TrainConfig(nesterov=True, momentum=0.0)


def test_one_mean_serves_all_channels():
    recipe = PreprocessConfig(channels=2, mean=(0.25,), std=(0.5, 0.75))
    assert recipe.mean == (0.25, 0.25)
    assert recipe.std == (0.5, 0.75)


sizes = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
shares = st.floats(0, 0.99)


def of(channels, low):
    return st.tuples(*[st.floats(low, 1000)] * channels)


@st.composite
def recipes(draw):
    channels = draw(st.integers(1, 4))
    params = st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.lists(st.integers(), max_size=2))
    return PreprocessConfig(
        size=draw(sizes),
        channels=channels,
        resize_mode=draw(st.sampled_from(RESIZE_MODES)),
        interpolation=draw(st.sampled_from(INTERPOLATIONS)),
        crop_pct=draw(st.floats(0.1, 1)),
        mean=draw(of(channels, -1000)),
        std=draw(of(channels, 1e-6)),
        steps=tuple(draw(st.lists(st.builds(AugmentStep, st.sampled_from(STEPS), params), max_size=3))),
        compose=draw(st.none() | st.just({"transform": {"p": 0.5, "size": [1, 2]}})),
    )


configs = st.builds(
    TrainConfig,
    epochs=st.none() | st.integers(1, 100),
    batch_size=st.integers(1, 1000),
    lr=st.none() | st.floats(1e-9, 1000),
    optimizer=st.sampled_from(OPTIMIZERS),
    momentum=st.floats(0.1, 0.99),
    nesterov=st.booleans(),
    schedule=st.sampled_from(SCHEDULES),
    precision=st.sampled_from(PRECISIONS),
    backend=st.sampled_from(BACKENDS),
    device=st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:1"]),
    workers=st.none() | st.integers(0, 256),
    seed=st.integers(0, 2**63 - 1),
)
models = st.builds(
    ModelConfig, st.text(min_size=1), st.integers(1, 1000), st.integers(1, 64), sizes, dropout=st.none() | shares
)
experiments = st.builds(
    ExperimentConfig,
    dropout=st.none() | shares,
    size=st.none() | sizes,
    mean=st.none() | of(3, -1),
    split=st.sampled_from([(0.7, 0.15, 0.15), (1.0, 0.0, 0.0), parse_split("1/1/98")]),
    data=st.builds(DataConfig, data_dir=st.none() | st.text(min_size=1), allow_unreadable=st.floats(0, 1)),
    train=configs,
)


@given(recipes() | configs | models | experiments)
def test_a_spec_goes_to_json_and_back(spec):
    assert from_dict(type(spec), json.loads(json.dumps(to_dict(spec)))) == spec


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_with_a_default_may_be_left_out(kind):
    required = REQUIRED.get(kind, {})
    assert from_dict(kind, required) == kind(**required)
    assert set(to_dict(kind(**required))) == {f.name for f in fields(kind)}


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (TrainConfig, {"optimzer": "sgd"}, "unknown option 'optimzer' in .train.; did you mean optimizer"),
        (ExperimentConfig, {"train": {"epoch": 3}}, "unknown option 'epoch' in .train.; did you mean epochs"),
        (
            PreprocessConfig,
            {"steps": [{"op": "flip", "parms": {}}]},
            "unknown option 'parms' of AugmentStep; did",
        ),
        (DataConfig, {"zzz": 1}, "unknown option 'zzz' in .data.; available: data_dir, on_unreadable"),
        (ExperimentConfig, {"train": 3}, "TrainConfig is 3; allowed: a table"),
        (ExperimentConfig, {"split": 3}, "ExperimentConfig.split is 3; allowed: three fractions"),
        (ModelConfig, {"arch": "lenet"}, "ModelConfig does not fit the values .*classes"),
        (TrainConfig, {"epochs": 0, "probe": False}, r"TrainConfig\.epochs is 0; allowed: 1 or more"),
    ],
)
def test_values_that_fit_no_spec(kind, data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(kind, data)


SCHEMA = jsonschema.Draft7Validator(json_schema(ExperimentConfig))
TABLES = {ExperimentConfig: "", DataConfig: "data", TrainConfig: "train"}


@given(experiments)
def test_the_schema_takes_every_config(experiment):
    SCHEMA.validate(_without_none(to_dict(experiment)))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind, name, values, _ in BAD
        for value in values
        if kind in TABLES and isinstance(value, str | int | float) and value == value and value not in ("", math.inf)
    ],
)
def test_the_schema_refuses_what_the_checks_refuse(kind, name, value):
    table = {name: value}
    assert not SCHEMA.is_valid({TABLES[kind]: table} if TABLES[kind] else table)


def test_the_schema_refuses_a_key_that_there_is_not():
    assert not SCHEMA.is_valid({"train": {"epoch": 3}})


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("64x128", (64, 128)), (" 64X128 ", (64, 128)), ("4096×1", (4096, 1))]
)
def test_a_size_is_height_by_width(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "64x", "x64", "64x0", "4097", "64x64x3", "-64", "64.0", "999999"])
def test_a_size_that_is_none(text):
    with pytest.raises(ConfigError, match="as in 224 or 64x128"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "s", "-1m", "1d", "1:30"])
def test_a_duration_that_is_none(text):
    with pytest.raises(ConfigError, match="as in 90s, 10m or 2h"):
        parse_duration(text)


@given(st.integers(1, 100), st.integers(0, 100))
def test_a_split_in_per_cent_sums_to_one(train, valid):
    valid = min(valid, 100 - train)
    parts = parse_split(f"{train}/{valid}/{100 - train - valid}")
    assert sum(parts) == pytest.approx(1)
    assert parts[0] == pytest.approx(train / 100)
    assert ExperimentConfig(split=parts).split == parts


def test_a_split_may_be_in_fractions():
    assert parse_split("0.8/0.1/0.1") == pytest.approx((0.8, 0.1, 0.1))


@pytest.mark.parametrize("text", ["80/20", "0/50/50", "a/b/c", "", "120/-10/-10", "nan/0/0", "1/1/1/97"])
def test_a_split_that_is_none(text):
    with pytest.raises(ConfigError, match="allowed: TRAIN/VALID/TEST"):
        parse_split(text)


def test_the_parts_of_a_split_must_fill_the_whole():
    with pytest.raises(ConfigError, match="sums to 90; the three parts must sum to 100"):
        parse_split("70/10/10")


def test_every_field_is_tried_above():
    assert {(kind, name) for kind, name, _, _ in BAD} == {
        (kind, name) for kind in KINDS for name in option_fields(kind)
    }


def test_a_key_of_another_table_is_sent_there():
    with pytest.raises(ConfigError, match=r"'lr' belongs in the table \[train\]"):
        from_dict(ExperimentConfig, {"lr": 0.1})
    with pytest.raises(ConfigError, match=r"'on_unreadable' belongs in the table \[data\]"):
        from_dict(ExperimentConfig, {"on_unreadable": "skip"})
