"""What came out, and its documented JSON form."""

import json
from dataclasses import replace

import pytest

from imgclf.core.results import ClassResult, EpochRecord, Evaluation, History, Prediction


def record(epoch, best):
    return EpochRecord(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, best)


@pytest.mark.parametrize(("flags", "best"), [("", None), ("x", 1), ("xx.", 2), ("x.x", 3)])
def test_the_best_epoch_is_the_last_that_was_best(flags, best):
    history = History(tuple(record(i + 1, flag == "x") for i, flag in enumerate(flags)))
    assert len(history) == len(flags)
    assert [r.epoch for r in history] == list(range(1, len(flags) + 1))
    assert (history.best and history.best.epoch) == best


def test_an_evaluation_as_json():
    rows = (ClassResult("cat", 1.0, 0.5, 0.6, 2), ClassResult("dog", 0.5, 1.0, 0.6, 1))
    evaluation = Evaluation(3, 0.5, 2 / 3, None, 0.75, 0.7, rows, ((0, 0, 1), (0, 1, 1), (1, 1, 1)))
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert list(values) == [
        "n",
        "loss",
        "accuracy",
        "top5",
        "balanced_accuracy",
        "macro_f1",
        "per_class",
        "confusion",
        "intervals",
        "calibration",
        "seen",
        "unseen",
    ]
    assert values["per_class"][0] == {"class": "cat", "precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 2}
    assert values["confusion"] == {"cat": {"cat": 1, "dog": 1}, "dog": {"dog": 1}}
    assert evaluation.confusion_matrix().tolist() == [[1, 1], [0, 1]]
    assert evaluation.confusion_matrix([1, 0]).tolist() == [[1, 0], [1, 1]]
    assert evaluation.confusion_matrix([1]).tolist() == [[1]]
    assert values["top5"] is None
    assert (values["seen"], values["unseen"]) == (0, None)
    leaked = replace(evaluation, seen=1, unseen=replace(evaluation, n=2)).to_dict()
    assert (leaked["seen"], leaked["unseen"]) == (1, {**evaluation.to_dict(), "n": 2})


def test_a_prediction_as_json():
    good = Prediction("a.png", "cat", 0.75, (("cat", 0.75), ("dog", 0.25)), None, {"cat": 0.75, "dog": 0.25})
    assert good.to_dict() == {
        "path": "a.png",
        "label": "cat",
        "confidence": 0.75,
        "top": [{"label": "cat", "confidence": 0.75}, {"label": "dog", "confidence": 0.25}],
        "unknown_score": None,
        "accepted": None,
        "error": None,
    }
    bad = Prediction("b.png", None, None, error="no such file").to_dict()
    assert [name for name, value in bad.items() if value] == ["path", "error"]
    refused = replace(good, unknown_score=7.5, accepted=False).to_dict()
    assert (refused["label"], refused["unknown_score"], refused["accepted"]) == ("cat", 7.5, False)
