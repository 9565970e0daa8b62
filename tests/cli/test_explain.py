"""`imgclf explain`: the output, where the pictures go, and what is never overwritten."""

import json
import shutil

import pytest
from PIL import Image

from support.command_line import run
from support.photos import color_image


@pytest.fixture
def here(here):
    color_image("red", 0).save("img.png")
    return here


def test_one_picture_an_image(here):
    result = run("explain", "img.png", "photos/blue/0[01].png", "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == ["img.png", "photos/blue/00.png", "photos/blue/01.png"]
    assert list(rows[0]) == ["path", "label", "confidence", "method", "picture", "error"]
    assert rows[0]["picture"] == "explanations/img-gradcam.png"
    assert rows[0]["method"] == "gradcam"
    assert sorted(path.name for path in (here / "explanations").iterdir()) == [
        *("00-gradcam.png", "01-gradcam.png", "img-gradcam.png")
    ]
    said = json.loads(run("predict", "img.png", "--json").stdout)
    assert (said["label"], said["confidence"]) == (rows[0]["label"], pytest.approx(rows[0]["confidence"]))


def test_a_table_for_people(here):
    result = run("explain", "img.png", "--class", "green", "--method", "occlusion", "-o", "new/folder")
    assert result.exit_code == 0, result.stderr
    header, row = result.stdout.splitlines()
    assert header.split() == ["image", "class", "confidence", "picture"]
    assert row.split()[:2] == ["img.png", "green"]
    assert row.split()[-1] == "new/folder/img-occlusion.png"
    assert result.stderr.startswith("model: runs/")


def test_maps_of_few_cells_are_called_too_coarse_once(here):
    result = run("train", "photos", "--arch", "resnet18", "--weights", "none", "--size", 48, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    result = run("explain", "img.png", "photos/blue", "--model", "runs/photos-resnet18-1")
    said = (
        "the last feature maps have only 2×2 cells, too few to locate anything: try --method occlusion, or train with"
    )
    assert " ".join(result.stderr.split()).count(said) == 1
    result = run("explain", "img.png", "--model", "runs/photos-resnet18-1", "--method", "occlusion")
    assert result.exit_code == 0, result.stderr
    assert "cells" not in result.stderr


def test_images_of_one_name_get_pictures_of_their_own(here):
    first = run("explain", "photos/red/00.png", "photos/blue/00.png", "photos/red/00.png")
    names = [line.split()[-1] for line in first.stdout.splitlines()[1:]]
    assert names == [f"explanations/00-gradcam{number}.png" for number in ("", "-2", "-3")]


def test_only_an_earlier_picture_of_the_same_image_is_written_over(here):
    (here / "explanations").mkdir()
    color_image("blue", 1).save("explanations/img-gradcam.png")  # somebody's photo
    before = (here / "explanations" / "img-gradcam.png").read_bytes()
    for _ in range(2):
        assert run("explain", "img.png").stdout.splitlines()[1].endswith("explanations/img-gradcam-2.png")
    (here / "other").mkdir()
    shutil.copy("img.png", "other/img.png")
    assert run("explain", "other/img.png").stdout.splitlines()[1].endswith("explanations/img-gradcam-3.png")
    assert (here / "explanations" / "img-gradcam.png").read_bytes() == before


def test_a_bad_image_is_named_and_the_others_are_explained(here):
    (here / "bad.png").write_bytes(b"no image")
    for options in ((), ("--kernels",), ("--layers",)):
        result = run("explain", "bad.png", "img.png", "gone.png", "--json", *options)
        assert result.exit_code == 1
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["error"] for row in rows] == ["not an image of a known format", None, "no such file"]
        assert [row["picture"] is None for row in rows] == [True, False, True]
        assert "2 pictures of 3 could not be made" in result.stderr


def test_kernels_and_layers_are_pictures_of_their_own(here):
    result = run("explain", "img.png", "--kernels", "--layers", "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["picture"] for row in rows] == ["explanations/img-kernels.png", "explanations/img-layers.png"]
    assert [row["method"] for row in rows] == ["kernels", "layers"]


def test_the_classic_kernels_need_no_model(in_folder):
    color_image("red", 0, (3, 900)).save("img.png")
    result = run("explain", "img.png", "--kernels")
    assert result.exit_code == 0, result.stderr
    assert "only the classic kernels are drawn" in result.stderr
    with Image.open("explanations/img-kernels.png") as picture:
        assert picture.width == 1440
    assert run("explain", "img.png", "--layers").exit_code == 2


WRONG = [
    (("img.png", "--method", "gradcm"), "no method is called 'gradcm'; did you mean gradcam"),
    (("img.png", "--class", "gren"), "no class of the model is called 'gren'; did you mean green"),
    (("img.png", "--kernels", "--class", "red"), "--kernels shows layers"),
    (("img.png", "--layers", "--method", "occlusion"), "--layers shows layers"),
    (("img.png", "--kernels", "--model", "nowhere"), "nowhere not found"),
    (("img.png", "-o", "img.png"), "--out is 'img.png', a file; expected a folder"),
    (("img.png", "-o", "photos/red"), "lies inside the data"),
    (("other", "-o", "other/red"), "lies inside the data"),
    (("-",), "no images to explain"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_wrong_use_changes_nothing(here, args, message):
    (here / "other").mkdir()
    before = sorted(here.rglob("*"))
    result = run("explain", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(here.rglob("*")) == before
