"""`imgclf train`: from images to a model file, with everything that happened in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import arch_name
from imgclf.cli._options import (
    DATA,
    MODEL,
    OUTPUT,
    TRAINING,
    Arch,
    Augment,
    BatchSize,
    Config,
    Epochs,
    Json,
    Optimizer,
    RecipeName,
    Seed,
    Size,
    Split,
    Track,
    TrainDataDir,
    TrainDevice,
    Weights,
    choices,
    option,
)
from imgclf.core.config import (
    CACHES,
    CLASS_WEIGHTS,
    COMPILES,
    KEEPS,
    ON_BAD,
    PRECISIONS,
    RESIZE_MODES,
    SCHEDULES,
    DataConfig,
    ExperimentConfig,
    TrainConfig,
    parse_duration,
    parse_size,
    parse_split,
)
from imgclf.core.errors import ConfigError
from imgclf.storage.run_folder import ROOT


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder per class, a CSV file, tar shards, or digits, mnist, fashion-mnist, cifar10.",
            show_default=False,
        ),
    ] = None,
    arch: Arch = None,
    recipe: RecipeName = None,
    config: Config = None,
    weights: Weights = None,
    init: Annotated[
        str | None, option(MODEL, "Go on from a run folder or model file: its network, pixels, weights and classes.")
    ] = None,
    size: Size = None,
    channels: Annotated[
        int | None, option(MODEL, "1 for gray, 3 for color; else those of the network or the data.")
    ] = None,
    resize_mode: Annotated[
        str | None, option(MODEL, f"How images get to that size: {choices(RESIZE_MODES)}.", "crop")
    ] = None,
    mirror: Annotated[bool | None, option(MODEL, "Whether a mirrored image keeps its label; else tried out.")] = None,
    augment: Augment = None,
    dropout: Annotated[
        float | None, option(MODEL, "The share of units left out in training, where the network has any drop-out.")
    ] = None,
    split: Split = None,
    data_dir: TrainDataDir = None,
    on_bad: Annotated[
        str | None, option(DATA, f"What to do about images that can't be read: {choices(ON_BAD)}.", DataConfig.on_bad)
    ] = None,
    allow_bad: Annotated[
        str | None, option(DATA, "The largest share of images that can't be read.", f"{DataConfig.allow_bad:.0%}")
    ] = None,
    max_pixels: Annotated[
        int | None, option(DATA, "The largest image, in pixels.", f"{DataConfig.max_pixels:,}")
    ] = None,
    cache: Annotated[
        str | None, option(DATA, f"Where decoded images are kept: {choices(CACHES)}.", DataConfig.cache)
    ] = None,
    minutes: Annotated[float | None, option(TRAINING, "Fit in this time: it decides the number of epochs.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Annotated[
        float | None, option(TRAINING, "Learning rate; else chosen by the optimizer and the weights.")
    ] = None,
    layer_decay: Annotated[
        float | None,
        option(TRAINING, "How much slower each twelfth of the depth learns than the next; 1 is off."),
    ] = None,
    optimizer: Optimizer = None,
    momentum: Annotated[float | None, option(TRAINING, "Momentum of sgd.", TrainConfig.momentum)] = None,
    nesterov: Annotated[bool | None, option(TRAINING, "Nesterov's momentum, for sgd.")] = None,
    weight_decay: Annotated[
        float | None, option(TRAINING, "Weight decay, but not on norms and biases.", TrainConfig.weight_decay)
    ] = None,
    schedule: Annotated[
        str | None, option(TRAINING, f"How the learning rate changes: {choices(SCHEDULES)}.", TrainConfig.schedule)
    ] = None,
    step_epochs: Annotated[
        int | None, option(TRAINING, "Epochs per step of the schedule `step`.", TrainConfig.step_epochs)
    ] = None,
    gamma: Annotated[
        float | None, option(TRAINING, "What the schedule `step` multiplies by.", TrainConfig.gamma)
    ] = None,
    warmup_epochs: Annotated[
        float | None, option(TRAINING, "Epochs in which the learning rate rises; else 1, for cosine.")
    ] = None,
    label_smoothing: Annotated[
        float | None,
        option(TRAINING, "How much of the target goes to the other classes.", TrainConfig.label_smoothing),
    ] = None,
    clip_norm: Annotated[
        float | None, option(TRAINING, "The largest norm of a gradient; 0 is off.", TrainConfig.clip_norm)
    ] = None,
    freeze_epochs: Annotated[
        int | None, option(TRAINING, "Epochs in which only the head learns.", TrainConfig.freeze_epochs)
    ] = None,
    freeze_norm: Annotated[
        bool | None,
        typer.Option(
            "--freeze-norm/--train-norm",
            help="Keep or learn the statistics of batch norms; else keep those of pretrained weights.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        option(TRAINING, "Stop after this many epochs without a better one; 0 is off.", TrainConfig.patience),
    ] = None,
    ema: Annotated[
        float | None, option(TRAINING, "Decay of the running mean of the weights, which is what is kept; 0 is off.")
    ] = None,
    class_weights: Annotated[
        str | None, option(TRAINING, f"Weigh rare classes more: {choices(CLASS_WEIGHTS)}.")
    ] = None,
    precision: Annotated[
        str | None, option(TRAINING, f"Numbers to compute in: {choices(PRECISIONS)}.", TrainConfig.precision)
    ] = None,
    device: TrainDevice = None,
    workers: Annotated[
        int | None, option(TRAINING, "Threads that read images; their number changes no result.")
    ] = None,
    compile_: Annotated[
        str | None,
        option(TRAINING, f"torch.compile or CUDA graph: {choices(COMPILES)}.", TrainConfig.compile, "--compile"),
    ] = None,
    seed: Seed = None,
    ensemble: Annotated[
        int | None,
        option(TRAINING, "Train so many networks with seeds of their own, joined in one model file."),
    ] = None,
    dry_run: Annotated[
        bool | None, option(OUTPUT, "Show the plan, its time and memory, and the same in Python.", flag="--dry-run")
    ] = None,
    resume: Annotated[Path | None, option(OUTPUT, "Go on with the training of this run folder.")] = None,
    checkpoint_every: Annotated[
        str | None, option(OUTPUT, "Save the state within an epoch this often, as 90s or 10m.", "1m")
    ] = None,
    keep: Annotated[
        str | None, option(OUTPUT, f"Which epochs to keep a model file of: {choices(KEEPS)}.", ExperimentConfig.keep)
    ] = None,
    runs: Annotated[Path | None, option(OUTPUT, "Where run folders are made.", ROOT)] = None,
    name: Annotated[str | None, option(OUTPUT, "The name of the run folder; else made of data and network.")] = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Train a classifier, test it, and keep everything in a run folder.

    [dim]imgclf train digits[/dim]   [dim]imgclf train ./my_photos --arch resnet50[/dim]
    """
    given = {key: value for key, value in locals().items() if value is not None}
    with console.waiting("loading"):
        from imgclf.cli._training import run_training

    run_training(data, resolve_request(given), given)


def resolve_request(given: dict[str, Any]) -> dict[str, Any]:
    """The options as changes of an `ExperimentConfig`, over those of the config file."""
    from imgclf.storage.run_folder import find_config

    changes: dict[str, Any] = find_config(given["config"]) if "config" in given else {}
    own = _taken(given, ("arch", "weights", "init", "channels", "resize_mode", "augment", "mirror", "dropout", "keep"))
    if "arch" in own:
        own["arch"] = arch_name(own["arch"])
    reading = _taken(given, ("data_dir", "on_bad", "max_pixels", "cache"))
    training = _taken(given, tuple(TrainConfig.__dataclass_fields__))
    if "compile_" in given:
        training["compile"] = given["compile_"]
    if "batch_size" in given:
        training["batch_size"] = _batch_size(given["batch_size"])
    if "checkpoint_every" in given:
        training["checkpoint_every"] = parse_duration(given["checkpoint_every"])
    if "size" in given:
        own["size"] = parse_size(given["size"])
    if "split" in given and Path(given["split"]).is_file():
        reading["split_file"] = given["split"]
    elif given.get("split", "").lower().endswith(".csv"):
        raise ConfigError(f"--split is {given['split']!r}, and there is no such file")
    elif "split" in given:
        own["split"] = parse_split(given["split"])
        reading["split_file"] = None  # that of a config would decide alone
    if "allow_bad" in given:
        reading["allow_bad"] = _share(given["allow_bad"])
    return {
        **changes,
        **own,
        "data": {**changes.get("data", {}), **reading},
        "train": {**changes.get("train", {}), **training},
    }


def _taken(given: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: given[key] for key in keys if key in given}


def _batch_size(text: str) -> int:
    """`64` as 64, `auto` as 0."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"--batch-size is {text!r}; allowed: a number of images, or auto")
    return int(text)


def _share(text: str) -> float:
    """`10%`, `10` or `0.1` as 0.1."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise typer.BadParameter(f"--allow-bad is {text!r}; expected a share like 10%") from None
    return number / 100 if text.endswith("%") or number >= 1 else number
