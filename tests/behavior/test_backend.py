"""The inference backend of a run: what it computes, that it is recorded, and that commands and Python agree."""

import tomllib

import numpy as np
import pytest

from imgclf import Classifier
from imgclf.evaluation import openvino

OPENVINO = {"train": {"backend": "openvino"}}

pytestmark = pytest.mark.skipif(not openvino.is_installed(), reason="OpenVINO is not installed")


@pytest.fixture
def converted(monkeypatch):
    """How often a network is converted."""
    found, real = [], openvino._converted
    monkeypatch.setattr(openvino, "_converted", lambda *given: found.append(1) or real(*given))
    return found


def test_a_run_keeps_its_backend_and_predicts_the_bits_of_its_test(in_folder, converted):
    classifier = Classifier("lenet", size=28, config=OPENVINO).fit("digits", epochs=1, runs="runs", name="fast")
    assert converted
    assert tomllib.loads((in_folder / "runs/fast/config.toml").read_text())["train"]["backend"] == "openvino"
    tested = classifier.predictions_["test"]
    by_name = dict(zip(tested.refs, tested.probabilities, strict=True))
    samples = classifier.split_.samples("test")[:9]
    images = [classifier.source_.open(sample.ref) for sample in samples]
    for sample, prediction in zip(samples, classifier.predict(images), strict=True):
        alone = list(prediction.probabilities.values())
        assert np.array_equal(np.float32(alone), np.float32(by_name[sample.ref]))

    other = Classifier.load("runs/fast", backend="torch")
    assert abs(other.evaluate().loss - tested.evaluation.loss) < 1e-4
    assert np.allclose(other.predictions_["test"].probabilities, tested.probabilities, atol=1e-4)

    resumed = Classifier("lenet").resume("runs/fast", epochs=2)
    assert resumed.config_.train.backend == "openvino"
