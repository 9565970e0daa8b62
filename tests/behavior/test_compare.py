"""Two runs on the same test images: the paired figures, and the images that changed."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import ExperimentConfig, ModelConfig, PreprocessConfig, TrainConfig
from imgclf.core.errors import DataError, UnknownName
from imgclf.evaluation.predictions import Predictions, write_predictions
from imgclf.models.build import build_model
from imgclf.storage.model_file import Manifest, save_model
from imgclf.storage.run_folder import PREDICTIONS, RunInfo, create_run, write_config
from imgclf.storage.run_list import RunEntry
from imgclf.studies.compare import Comparison, Paired, compare_predictions, compare_runs, shared_images

CLASSES = ("ant", "bee", "cat")
ENTRY = RunEntry("a", 1, "done", None, None, None, None)
counts = st.integers(0, 60)
paired = st.builds(Paired, counts, counts, counts, counts).filter(lambda p: p.n > 0)


def answers_of(true, called, classes=CLASSES, names=None, contents=None):
    """Answers that call images of the classes `true` by the names `called`."""
    targets = np.array([classes.index(name) for name in true])
    logits = np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in called]]
    names = names or [f"{name}/{i}.jpg" for i, name in enumerate(true)]
    contents = contents or ["" for _ in names]
    return Predictions(logits, targets, tuple(names), tuple(contents), classes)


def make_run(root, name, answers=None, **changes):
    """A run folder with answers and a config."""

    def fill(folder):
        write_config(folder / "config.toml", ExperimentConfig(**changes), "photos")
        if answers is not None:
            write_predictions(folder / PREDICTIONS, answers)

    made = {"versions": {"torch": f"1-{name}"}, "weights": {"source": "from scratch"}}
    info = RunInfo(status="done", data="photos", arch="lenet", **made)
    return create_run(root, name, info, exact=True, fill=fill)


@given(paired)
def test_the_interval_holds_the_difference_and_turns_with_the_models(p):
    low, high = p.interval
    assert -1 <= low <= p.difference <= high <= 1
    turned = Paired(p.both, p.only_b, p.only_a, p.neither)
    assert turned.difference == -p.difference
    assert turned.interval == pytest.approx((-high, -low))
    assert turned.p_value == pytest.approx(p.p_value)
    assert 0 < p.p_value <= 1


@pytest.mark.parametrize(
    ("table", "interval"),
    [  # Newcombe 1998, method 10; Fagerland, Lydersen and Laake 2014, doi:10.1002/sim.6148
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_the_interval_is_the_published_one(table, interval):
    both, only_a, only_b, neither = table
    low, high = Paired(both, only_b, only_a, neither).interval  # the paper takes the first minus the second
    assert (low, high) == pytest.approx(interval, abs=6e-4)


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.05, 0.05), (0.9, 0.02, 0.06, 0.02), (0.4, 0.2, 0.2, 0.2)])
@pytest.mark.parametrize("n", [40, 200])
def test_the_interval_has_the_confidence_that_it_says(shares, n):
    rng = np.random.default_rng(0)
    true = shares[2] - shares[1]
    intervals = [Paired(*map(int, draw)).interval for draw in rng.multinomial(n, shares, 1000)]
    assert np.mean([low <= true <= high for low, high in intervals]) > 0.925


def test_the_test_is_the_binomial_one():
    assert Paired(100, 0, 0, 3).p_value == 1.0
    assert Paired(10, 0, 6, 2).p_value == pytest.approx(2 / 2**6)
    assert Paired(10, 1, 7, 2).p_value == pytest.approx(2 * (1 + 8) / 2**8)


@given(st.lists(st.tuples(*[st.sampled_from(CLASSES)] * 3), min_size=1, max_size=20), st.randoms())
def test_neither_the_order_of_images_nor_that_of_classes_matters(rows, random):
    true, mine, theirs = zip(*rows, strict=True)
    names = [f"{i}.jpg" for i in range(len(rows))]
    first = answers_of(true, mine, names=names)
    straight = compare_predictions(first, answers_of(true, theirs, names=names))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = answers_of(
        [true[i] for i in order],
        [theirs[i] for i in order],
        classes=CLASSES[::-1],
        names=[names[i] for i in order],
    )
    assert compare_predictions(*shared_images(first, shuffled)) == straight
    figures, changed = straight
    assert figures.n == len(rows)
    assert len(changed) == figures.only_a + figures.only_b
    assert figures.only_b == sum(change.better for change in changed)


def test_images_are_known_by_their_content():
    contents = ["a" * 64, "b" * 64]
    one = answers_of(["ant", "bee"], ["ant", "ant"], names=["old/1", "old/2"], contents=contents)
    two = answers_of(["bee", "ant"], ["bee", "cat"], names=["new/x", "new/y"], contents=contents[::-1])
    figures, changed = compare_predictions(*shared_images(one, two))
    assert (figures.only_a, figures.only_b) == (1, 1)
    assert [(c.path, c.true, c.a, c.b, c.better) for c in changed] == [
        ("old/1", "ant", "ant", "cat", False),
        ("old/2", "bee", "ant", "bee", True),
    ]


def test_two_runs(tmp_path):
    true = ["ant", "bee", "cat", "ant"]
    make_run(tmp_path, "a", answers_of(true, ["ant", "ant", "ant", "ant"]))
    make_run(tmp_path, "b", answers_of(true, ["ant", "bee", "cat", "bee"]), train=TrainConfig(lr=0.01), arch="vgg16")
    found = compare_runs("a", "b", runs=tmp_path)
    assert (found.a.accuracy, found.b.accuracy, found.paired.difference) == (0.5, 0.75, 0.25)
    assert [change.path for change in found.fixed] == ["bee/1.jpg", "cat/2.jpg"]
    assert [change.path for change in found.broken] == ["ant/3.jpg"]
    assert found.settings == {"arch": ("auto", "vgg16"), "train.lr": (None, 0.01)}
    assert found.environment == {"torch": ("1-a", "1-b")}
    value = json.loads(json.dumps(found.to_dict()))
    assert value["settings"]["train.lr"] == [None, 0.01]
    gain = round((np.e - 1) / (np.e + 2), 6)
    assert value["fixed"][0] == {
        "path": "bee/1.jpg",
        "content": "",
        "true": "bee",
        "a": "ant",
        "b": "bee",
        "gain": gain,
    }
    assert (value["n"], value["digest"]) == (4, found.digest)
    same = compare_runs(tmp_path / "a", tmp_path / "a")
    assert (same.paired.difference, same.changed, same.settings, same.environment) == (0.0, (), {}, {})
    assert same.paired.p_value == 1.0
    assert (same.same_predictions, found.same_predictions, found.same_weights) == (True, False, False)


def test_changed_images_come_by_turns_from_each_class_the_largest_change_first():
    true = ["ant", "ant", "ant", "bee", "bee", "cat"]
    before, after = answers_of(true, ["cat"] * 5 + ["bee"]), answers_of(true, true)
    sure = np.array([1, 3, 2, 1, 2, 1], np.float32)[:, None]
    paired, changed = compare_predictions(before, replace(after, logits=after.logits * sure))
    found = Comparison(ENTRY, ENTRY, paired, changed, {}, {}, "")
    names = ["ant/1.jpg", "bee/4.jpg", "cat/5.jpg", "ant/2.jpg", "bee/3.jpg", "ant/0.jpg"]
    assert [change.path for change in found.fixed] == names
    assert found.fixed[0].gain > found.fixed[3].gain > found.fixed[5].gain > 0
    turned, changed = compare_predictions(replace(after, logits=after.logits * sure), before)
    assert [change.path for change in Comparison(ENTRY, ENTRY, turned, changed, {}, {}, "").broken] == names


def test_equal_weights_are_known_whatever_else_the_files_hold(tmp_path):
    answers = answers_of(["ant", "bee"], ["ant", "ant"])
    spec = ModelConfig("lenet", classes=3, channels=1, size=(16, 16))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed)
        manifest = Manifest(spec, CLASSES, PreprocessConfig(size=(16, 16), channels=1), data=name)
        save_model(make_run(tmp_path, name, answers).model, build_model(spec), manifest)
    assert compare_runs("a", "b", runs=tmp_path).same_weights
    assert not compare_runs("a", "c", runs=tmp_path).same_weights
    assert compare_runs("a", "c", runs=tmp_path).same_predictions
    assert not compare_runs("a", "b", runs=tmp_path).kept_probe
    for name in "ab":
        write_config(tmp_path / name / "config.toml", ExperimentConfig(train=TrainConfig(probe=True)), "photos")
    assert compare_runs("a", "b", runs=tmp_path).kept_probe
    (tmp_path / "b" / "model.safetensors").write_bytes(b"?")
    assert not compare_runs("a", "b", runs=tmp_path).same_weights


def test_other_test_images_are_refused_with_both_digests(tmp_path):
    one = answers_of(["ant", "bee"], ["ant", "bee"])
    two = answers_of(["ant", "cat"], ["ant", "cat"], names=["other/1.jpg", "other/2.jpg"])
    make_run(tmp_path, "a", one)
    make_run(tmp_path, "b", two)
    with pytest.raises(DataError, match="no test image in common") as caught:
        compare_runs("a", "b", runs=tmp_path)
    assert one.digest in str(caught.value)
    assert two.digest in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_classes_are_refused_by_name(tmp_path):
    make_run(tmp_path, "a", answers_of(["ant"], ["ant"]))
    make_run(tmp_path, "b", answers_of(["dog"], ["dog"], classes=("dog", "eel")))
    with pytest.raises(DataError, match="no class in common") as caught:
        compare_runs("a", "b", runs=tmp_path)
    problems = [problem.rpartition("/")[2] for problem in caught.value.problems]
    assert problems == ["a: ant", "a: bee", "a: cat", "b: dog", "b: eel"]


def test_runs_are_compared_on_the_test_images_that_both_have(tmp_path):
    contents = [letter * 64 for letter in "abcdef"]
    before = answers_of(["ant", "bee", "cat", "ant"], ["ant", "ant", "cat", "bee"], contents=contents[:4])
    classes, true = ("ant", "bee", "cat", "dog"), ["dog", "ant", "bee", "dog", "ant"]
    after = answers_of(
        true, ["dog", "ant", "bee", "ant", "ant"], classes=classes, contents=[contents[i] for i in (4, 0, 1, 5, 0)]
    )
    make_run(tmp_path, "a", before)
    make_run(tmp_path, "b", after)
    found = compare_runs("a", "b", runs=tmp_path)
    assert (found.paired.n, found.paired.both, found.paired.only_b) == (2, 1, 1)
    assert [change.content for change in found.changed] == [contents[1]]
    assert (found.a.n, found.a.accuracy, found.b.n, found.b.accuracy) == (2, 0.5, 2, 1.0)
    assert (found.left_out, found.other_classes) == ((2, 3), ((), ("dog",)))
    assert found.digest == before.take([0, 1]).digest


def test_what_is_no_run_or_has_no_answers(tmp_path):
    make_run(tmp_path, "first", answers_of(["ant"], ["ant"]))
    make_run(tmp_path, "older")
    with pytest.raises(DataError, match=r"imgclf evaluate --model .*older"):
        compare_runs("first", "older", runs=tmp_path)
    with pytest.raises(UnknownName, match="did you mean first"):
        compare_runs("frist", "older", runs=tmp_path)
    with pytest.raises(DataError, match="there are no runs in"):
        compare_runs("first", "older", runs=tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is not a run folder"):
        compare_runs(tmp_path / "folder", "first", runs=tmp_path)


def test_an_interval_of_models_that_are_always_right_is_finite():
    low, high = Paired(20, 0, 0, 0).interval
    assert math.isclose(low, -high)
    assert 0 < high < 0.25
