"""`imgclf train`: from images to a model file, with everything that happened in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli._options import DataDir, Json
from imgclf.specs import (
    CLASS_WEIGHTS,
    FITS,
    KEEPS,
    ON_BAD,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    DataConfig,
    Experiment,
    TrainConfig,
    parse_size,
    parse_split,
)

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
            help="A folder with a folder a class, a CSV file, or digits, mnist, fashion-mnist, cifar10.",
            show_default=False,
        ),
    ] = None,
    arch: Annotated[str | None, _option(MODEL, "The network; see `imgclf models`.", Experiment.arch)] = None,
    recipe: Annotated[str | None, _option(TRAINING, "A named experiment, as d0, d4 or lab10-4.")] = None,
    config: Annotated[Path | None, _option(TRAINING, "A TOML file with any of these, as a run's config.toml.")] = None,
    weights: Annotated[
        str | None, _option(MODEL, "auto, pretrained, none, a file, or a hub name.", Experiment.weights)
    ] = None,
    size: Annotated[str | None, _option(MODEL, "N or HxW in pixels; else the network's own.")] = None,
    channels: Annotated[
        int | None, _option(MODEL, "1 for grey, 3 for colour; else as the network or the data.")
    ] = None,
    fit: Annotated[str | None, _option(MODEL, f"{_choices(FITS).capitalize()} images to the size.", "crop")] = None,
    augment: Annotated[str | None, _option(MODEL, "none, light, standard or strong.", "standard")] = None,
    dropout: Annotated[float | None, _option(MODEL, "Of the network, where it has one.")] = None,
    split: Annotated[
        str | None, _option(DATA, "TRAIN/VALID/TEST in per cent, or a split.csv to follow.", "70/15/15")
    ] = None,
    data_dir: DataDir = None,
    on_bad: Annotated[
        str | None, _option(DATA, f"{_choices(ON_BAD).capitalize()} at images that can't be read.", DataConfig.on_bad)
    ] = None,
    allow_bad: Annotated[
        str | None, _option(DATA, "Go on with up to this share of bad images.", f"{DataConfig.allow_bad:.0%}")
    ] = None,
    max_pixels: Annotated[int | None, _option(DATA, "Refuse larger images.", f"{DataConfig.max_pixels:,}")] = None,
    epochs: Annotated[int | None, _option(TRAINING, "Passes over the training images; else by their number.")] = None,
    batch_size: Annotated[int | None, _option(TRAINING, "Images a step.", TrainConfig.batch_size)] = None,
    lr: Annotated[float | None, _option(TRAINING, "Learning rate; else by the optimizer and the start.")] = None,
    optimizer: Annotated[str | None, _option(TRAINING, f"{_choices(OPTIMIZERS)}.", TrainConfig.optimizer)] = None,
    momentum: Annotated[float | None, _option(TRAINING, "Of sgd.", TrainConfig.momentum)] = None,
    nesterov: Annotated[bool | None, _option(TRAINING, "Nesterov momentum, for sgd.")] = None,
    weight_decay: Annotated[
        float | None, _option(TRAINING, "Not on norms and biases.", TrainConfig.weight_decay)
    ] = None,
    schedule: Annotated[str | None, _option(TRAINING, f"{_choices(SCHEDULES)}.", TrainConfig.schedule)] = None,
    step_epochs: Annotated[int | None, _option(TRAINING, "Epochs a step.", TrainConfig.step_epochs)] = None,
    gamma: Annotated[float | None, _option(TRAINING, "Factor a step.", TrainConfig.gamma)] = None,
    warmup_epochs: Annotated[
        float | None, _option(TRAINING, "Epochs of rising learning rate.", TrainConfig.warmup_epochs)
    ] = None,
    label_smoothing: Annotated[float | None, _option(TRAINING, "0 to below 1.", TrainConfig.label_smoothing)] = None,
    clip_norm: Annotated[
        float | None, _option(TRAINING, "Largest gradient norm; 0 is off.", TrainConfig.clip_norm)
    ] = None,
    freeze_epochs: Annotated[
        int | None, _option(TRAINING, "Epochs in which only the head learns.", TrainConfig.freeze_epochs)
    ] = None,
    freeze_norm: Annotated[
        bool | None,
        typer.Option(
            "--freeze-norm/--train-norm",
            help="Keep batch statistics; else if the weights are pretrained.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None, _option(TRAINING, "Stop after so many epochs without a better one; 0 is off.", TrainConfig.patience)
    ] = None,
    class_weights: Annotated[
        str | None, _option(TRAINING, f"{_choices(CLASS_WEIGHTS)}, against imbalance.", TrainConfig.class_weights)
    ] = None,
    precision: Annotated[str | None, _option(TRAINING, f"{_choices(PRECISIONS)}.", TrainConfig.precision)] = None,
    device: Annotated[str | None, _option(TRAINING, "auto, cpu, cuda, cuda:1 or mps.", TrainConfig.device)] = None,
    workers: Annotated[int | None, _option(TRAINING, "Threads that read images; changes no result.")] = None,
    seed: Annotated[int | None, _option(TRAINING, "Of the split, the weights and the order.", TrainConfig.seed)] = None,
    resume: Annotated[Path | None, _option(OUTPUT, "A run folder whose training goes on.")] = None,
    keep: Annotated[
        str | None, _option(OUTPUT, f"Model files to keep: {_choices(KEEPS)} epochs.", Experiment.keep)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders are made.", rich_help_panel=OUTPUT)] = Path("runs"),
    name: Annotated[str | None, _option(OUTPUT, "The name of the run folder; else after data and network.")] = None,
    json: Json = False,
) -> None:
    """Train a classifier, test it, and keep everything in a run folder.

    [dim]imgclf train digits[/dim]   [dim]imgclf train ./my_photos --arch resnet18[/dim]
    """
    given = {key: value for key, value in locals().items() if value is not None}
    from imgclf.cli._training import run_training

    run_training(data, _changes(given), given)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """The options as changes of an `Experiment`, over those of the config file."""
    from imgclf.run import read_config

    changes: dict[str, Any] = read_config(given["config"])[0] if "config" in given else {}
    own = _taken(given, ("arch", "weights", "channels", "fit", "augment", "dropout", "keep"))
    reading = _taken(given, ("data_dir", "on_bad", "max_pixels"))
    training = _taken(given, tuple(TrainConfig.__dataclass_fields__))
    if "size" in given:
        own["size"] = parse_size(given["size"])
    if "split" in given and Path(given["split"]).is_file():
        reading["split_file"] = given["split"]
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


def _share(text: str) -> float:
    """`10%`, `10` or `0.1` as 0.1."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise typer.BadParameter(f"--allow-bad is {text!r}; expected a share like 10%") from None
    return number / 100 if text.endswith("%") or number >= 1 else number
