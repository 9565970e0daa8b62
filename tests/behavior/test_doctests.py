"""The examples of the public entry points run as they stand."""

import doctest

import pytest

import imgclf
from imgclf import Classifier

ENTRY_POINTS = {
    "Classifier": Classifier,
    "Classifier.fit": Classifier.fit,
    "Classifier.evaluate": Classifier.evaluate,
    "Classifier.predict": Classifier.predict,
    "Classifier.load": Classifier.load,
    **{name: getattr(imgclf, name) for name in ("open_source", "make_split", "evaluate", "predict", "explain")},
    "compare_runs": imgclf.compare_runs,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two small runs, `runs/first` and `runs/second`, that were tested."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("first", "second"):
        Classifier("lenet").fit("digits", epochs=1, runs=folder / "runs", name=name).evaluate()
    return folder


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_example_of_a_public_entry_point_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (example,) = doctest.DocTestFinder(recurse=False).find(ENTRY_POINTS[name], name, globs={})
    assert example.examples
    said = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
