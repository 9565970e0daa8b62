"""`imgclf train`: from images to a model file, with everything that happened in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.errors import ConfigError
from imgclf.run import ROOT
from imgclf.specs import (
    CACHES,
    CLASS_WEIGHTS,
    COMPILES,
    ENGINES,
    FITS,
    KEEPS,
    ON_BAD,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    DataConfig,
    Experiment,
    TrainConfig,
    parse_duration,
    parse_size,
    parse_split,
)
from imgclf.training.experiments import EXPERIMENTS

DATA, MODEL, TRAINING, OUTPUT = "Data", "Model and pixels", "Training", "Output"


def _option(panel: str, text: str, default: object = None, flag: str | None = None) -> Any:
    """An option whose default is a field of the specs: shown in the help, and applied there and not here."""
    shown = f"{text} [dim]\\[default: {default}][/dim]" if default is not None else text
    return typer.Option(*([flag] if flag else []), help=shown, show_default=False, rich_help_panel=panel)


def _choices(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder per class, a CSV file, tar shards, or digits, mnist, fashion-mnist, cifar10.",
            show_default=False,
        ),
    ] = None,
    arch: Annotated[str | None, _option(MODEL, "The network; see `imgclf models`.", Experiment.arch)] = None,
    recipe: Annotated[
        str | None, _option(TRAINING, f"A named experiment: {_choices(tuple(EXPERIMENTS.names()))}.")
    ] = None,
    config: Annotated[
        Path | None, _option(TRAINING, "A TOML file with any of these, like the config.toml of a run.")
    ] = None,
    weights: Annotated[
        str | None, _option(MODEL, "auto, pretrained, none, a file, or a hub name.", Experiment.weights)
    ] = None,
    init: Annotated[
        str | None, _option(MODEL, "Go on from a run folder or model file: its network, pixels, weights and classes.")
    ] = None,
    size: Annotated[str | None, _option(MODEL, "N or HxW in pixels; else the network's own.")] = None,
    channels: Annotated[
        int | None, _option(MODEL, "1 for grey, 3 for colour; else those of the network or the data.")
    ] = None,
    fit: Annotated[str | None, _option(MODEL, f"How images get to that size: {_choices(FITS)}.", "crop")] = None,
    mirror: Annotated[bool | None, _option(MODEL, "Whether a mirrored image keeps its label; else tried out.")] = None,
    augment: Annotated[
        str | None,
        _option(MODEL, "Changes to training images: none, light, standard, strong, trivial or mix.", "standard"),
    ] = None,
    dropout: Annotated[
        float | None, _option(MODEL, "The share of units left out in training, where the network has any drop-out.")
    ] = None,
    split: Annotated[
        str | None, _option(DATA, "TRAIN/VALID/TEST in per cent, or a split.csv to follow.", "70/15/15")
    ] = None,
    data_dir: Annotated[
        str | None, _option(DATA, "Where mnist, fashion-mnist and cifar10 lie, or are downloaded to.")
    ] = None,
    on_bad: Annotated[
        str | None, _option(DATA, f"What to do about images that can't be read: {_choices(ON_BAD)}.", DataConfig.on_bad)
    ] = None,
    allow_bad: Annotated[
        str | None, _option(DATA, "The largest share of images that can't be read.", f"{DataConfig.allow_bad:.0%}")
    ] = None,
    max_pixels: Annotated[
        int | None, _option(DATA, "The largest image, in pixels.", f"{DataConfig.max_pixels:,}")
    ] = None,
    cache: Annotated[
        str | None, _option(DATA, f"Where decoded images are kept: {_choices(CACHES)}.", DataConfig.cache)
    ] = None,
    minutes: Annotated[float | None, _option(TRAINING, "Fit in this time: it decides the number of epochs.")] = None,
    epochs: Annotated[
        int | None, _option(TRAINING, "Passes over the training images; else chosen by their number.")
    ] = None,
    batch_size: Annotated[
        str | None, _option(TRAINING, "Images per step; `auto` is the most that fit.", TrainConfig.batch_size)
    ] = None,
    lr: Annotated[
        float | None, _option(TRAINING, "Learning rate; else chosen by the optimizer and the weights.")
    ] = None,
    layer_decay: Annotated[
        float | None,
        _option(TRAINING, "How much slower each twelfth of the depth learns than the next; 1 is off."),
    ] = None,
    optimizer: Annotated[
        str | None, _option(TRAINING, f"One of {_choices(OPTIMIZERS)}.", TrainConfig.optimizer)
    ] = None,
    momentum: Annotated[float | None, _option(TRAINING, "Momentum of sgd.", TrainConfig.momentum)] = None,
    nesterov: Annotated[bool | None, _option(TRAINING, "Nesterov's momentum, for sgd.")] = None,
    weight_decay: Annotated[
        float | None, _option(TRAINING, "Weight decay, but not on norms and biases.", TrainConfig.weight_decay)
    ] = None,
    schedule: Annotated[
        str | None, _option(TRAINING, f"How the learning rate changes: {_choices(SCHEDULES)}.", TrainConfig.schedule)
    ] = None,
    step_epochs: Annotated[
        int | None, _option(TRAINING, "Epochs per step of the schedule `step`.", TrainConfig.step_epochs)
    ] = None,
    gamma: Annotated[
        float | None, _option(TRAINING, "What the schedule `step` multiplies by.", TrainConfig.gamma)
    ] = None,
    warmup_epochs: Annotated[
        float | None, _option(TRAINING, "Epochs in which the learning rate rises; else 1, for cosine.")
    ] = None,
    label_smoothing: Annotated[
        float | None,
        _option(TRAINING, "How much of the target goes to the other classes.", TrainConfig.label_smoothing),
    ] = None,
    clip_norm: Annotated[
        float | None, _option(TRAINING, "The largest norm of a gradient; 0 is off.", TrainConfig.clip_norm)
    ] = None,
    freeze_epochs: Annotated[
        int | None, _option(TRAINING, "Epochs in which only the head learns.", TrainConfig.freeze_epochs)
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
        _option(TRAINING, "Stop after this many epochs without a better one; 0 is off.", TrainConfig.patience),
    ] = None,
    class_weights: Annotated[
        str | None, _option(TRAINING, f"Weigh rare classes more: {_choices(CLASS_WEIGHTS)}.")
    ] = None,
    precision: Annotated[
        str | None, _option(TRAINING, f"Numbers to compute in: {_choices(PRECISIONS)}.", TrainConfig.precision)
    ] = None,
    device: Annotated[
        str | None, _option(TRAINING, "Where to compute: auto, cpu, cuda, cuda:1 or mps.", TrainConfig.device)
    ] = None,
    workers: Annotated[
        int | None, _option(TRAINING, "Threads that read images; their number changes no result.")
    ] = None,
    engine: Annotated[
        str | None, _option(TRAINING, f"What augments images: {_choices(ENGINES)}.", TrainConfig.engine)
    ] = None,
    compile_: Annotated[
        str | None,
        _option(TRAINING, f"torch.compile or CUDA graph: {_choices(COMPILES)}.", TrainConfig.compile, "--compile"),
    ] = None,
    seed: Annotated[
        int | None,
        _option(TRAINING, "Decides the split, fresh weights, the order and the augmentation.", TrainConfig.seed),
    ] = None,
    ensemble: Annotated[
        int | None,
        _option(TRAINING, "Train so many networks with seeds of their own, joined in one model file."),
    ] = None,
    dry_run: Annotated[
        bool | None, _option(OUTPUT, "Show the plan, its time and memory, and the same in Python.", flag="--dry-run")
    ] = None,
    resume: Annotated[Path | None, _option(OUTPUT, "Go on with the training of this run folder.")] = None,
    checkpoint_every: Annotated[
        str | None, _option(OUTPUT, "Save the state within an epoch this often, as 90s or 10m.", "1m")
    ] = None,
    keep: Annotated[
        str | None, _option(OUTPUT, f"Which epochs to keep a model file of: {_choices(KEEPS)}.", Experiment.keep)
    ] = None,
    runs: Annotated[Path | None, _option(OUTPUT, "Where run folders are made.", ROOT)] = None,
    name: Annotated[str | None, _option(OUTPUT, "The name of the run folder; else made of data and network.")] = None,
    json: Json = False,
) -> None:
    """Train a classifier, test it, and keep everything in a run folder.

    [dim]imgclf train digits[/dim]   [dim]imgclf train ./my_photos --arch resnet18[/dim]
    """
    given = {key: value for key, value in locals().items() if value is not None}
    with console.waiting("loading"):
        from imgclf.cli._training import run_training

    run_training(data, changes_of(given), given)


def changes_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options as changes of an `Experiment`, over those of the config file."""
    from imgclf.run import read_config

    changes: dict[str, Any] = read_config(given["config"])[0] if "config" in given else {}
    own = _taken(given, ("arch", "weights", "init", "channels", "fit", "augment", "mirror", "dropout", "keep"))
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
