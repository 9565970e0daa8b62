"""What every registry keeps to: the names that a user may type, and how one that is not known is answered."""

import pytest

from imgclf.core.errors import UnknownName
from imgclf.core.registry import close_matches
from imgclf.data.sources.named import NAMED
from imgclf.models.backbones import find_arch
from imgclf.models.registry import ARCHS
from imgclf.tracking.registry import TRACKERS
from imgclf.training.recipes import EXPERIMENTS
from imgclf.transforms.presets import PRESETS

find_arch("lenet")  # the networks register themselves when they are first looked for
REGISTRIES = pytest.mark.parametrize("registry", [ARCHS, PRESETS, NAMED, EXPERIMENTS, TRACKERS], ids=lambda r: r.kind)


@REGISTRIES
def test_every_name_is_one_that_can_be_typed_and_gives_its_thing(registry):
    names = registry.names()
    assert len(names) == len(set(names)) == len(registry) > 0
    assert list(registry) == [registry.get(name) for name in names]
    assert all(name in registry and name == name.strip().lower() and " " not in name for name in names)


@REGISTRIES
def test_a_misspelt_name_is_answered_with_the_one_that_is_meant(registry):
    for name in registry.names():
        typed = f"{name[:-1]}#"
        with pytest.raises(UnknownName) as caught:
            registry.get(typed)
        assert str(caught.value).startswith(f"no {registry.kind} is called '{typed}'; ")
        for close in close_matches(typed, registry.names()):
            assert close in str(caught.value)


@REGISTRIES
def test_a_name_is_taken_once(registry):
    name = registry.names()[0]
    with pytest.raises(ValueError, match=f"'{name}' is registered twice"):
        registry.add(name, registry.get(name))
