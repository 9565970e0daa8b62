"""One optimizer step: what fits at once and what does not have the same gradient."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.core.errors import OutOfMemory
from imgclf.data.loading.loader import Batch, Mix
from imgclf.training import batch_size as module
from imgclf.training.batch_size import probe_batch_size
from imgclf.training.loss import batch_weight, summed_loss
from imgclf.training.step import BufferSnapshot, split_batch, train_step
from support.training import state_of_training

CPU = torch.device("cpu")
RECIPE = PreprocessConfig(size=(6, 6), channels=1)
N = 10
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


class Limited(nn.Module):
    """A net that runs out of memory above `limit` images, in the middle of its pass."""

    def __init__(self, limit=10**9, norm=False, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.features = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Tanh(), nn.Flatten(), nn.Dropout(dropout)
            )
            self.head = nn.Linear(64, 3)
        self.limit, self.sizes = limit, []

    def forward(self, images):
        features = self.features(images)
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return self.head(features)


def batch_of(n=N, mixed=False):
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 6, 6, 1), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 3, (n,), generator=generator)
    mix = Mix(targets.roll(1), torch.rand(n, generator=generator)) if mixed else None
    return Batch(pixels, targets, torch.arange(n), mix)


state_of = partial(state_of_training, batch_size=N, momentum=0.0)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize(("limit", "micro_batch_size", "parts"), [(5, 5, 2), (4, 3, 4), (1, 1, 10)])
def test_parts_have_the_gradient_of_the_whole(mixed, class_weights, limit, micro_batch_size, parts):
    whole, cut = state_of(Limited(), class_weights), state_of(Limited(limit), class_weights)
    for state in (whole, cut):
        train_step(state, batch_of(mixed=mixed), RECIPE, BufferSnapshot(state.model, CPU))
    assert (cut.micro_batch_size, cut.model.sizes[-parts:]) == (
        micro_batch_size,
        [min(micro_batch_size, N - i * micro_batch_size) for i in range(parts)],
    )
    for name, gradient in gradients(whole.model).items():
        torch.testing.assert_close(cut.model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cut.metric_sums, whole.metric_sums, atol=1e-4, rtol=1e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(cut.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_process_without_a_share_of_a_batch_adds_nothing(monkeypatch):
    monkeypatch.setattr(module.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(module.distributed, "sum_over_all", lambda mine: mine + 1)  # the other has an image
    monkeypatch.setattr(module.distributed, "sum_gradients", lambda parameters: None)
    state = state_of(Limited())
    before = [parameter.clone() for parameter in state.model.parameters()]
    assert train_step(state, batch_of(0), RECIPE, BufferSnapshot(state.model, CPU)) == 1
    assert state.metric_sums.tolist() == [0, 0]
    assert all(torch.equal(*pair) for pair in zip(before, state.model.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"clip_norm": 0.01}, {"optimizer": "adamw"}, {"momentum": 0.9}])
def test_the_update_is_made_once(options):
    whole, cut = state_of(Limited(), **options), state_of(Limited(3), **options)
    for state in (whole, cut):
        for n in (N, 7):
            train_step(state, batch_of(n), RECIPE, BufferSnapshot(state.model, CPU))
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(cut.model.state_dict()[name], tensor, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_the_mean_loss():
    state = state_of(Limited(), WEIGHTS)
    batch = batch_of()
    with torch.no_grad():
        before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    train_step(state, batch, RECIPE, BufferSnapshot(state.model, CPU))
    plain = Limited()
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.items())
    images = (batch.pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    loss = F.cross_entropy(plain(images), batch.targets, WEIGHTS, label_smoothing=0.1)
    loss.backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(state.model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)
    assert float(state.metric_sums[0]) == pytest.approx(N * float(loss.detach()), rel=1e-5)


def test_blended_images_count_for_both_of_their_classes():
    logits, batch = torch.randn(N, 3), batch_of(mixed=True)
    soft = F.one_hot(batch.targets, 3) * batch.mix.share[:, None]
    soft = soft + F.one_hot(batch.mix.targets, 3) * (1 - batch.mix.share[:, None])
    loss = summed_loss(logits, batch.targets, batch.mix, None, 0.1) / batch_weight(batch.targets, batch.mix, None)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft, label_smoothing=0.1))


def test_a_pass_that_failed_leaves_no_trace():
    """Batch statistics and dropout are those of a step that was planned in parts from the start."""
    failed, planned = state_of(Limited(5, norm=True, dropout=0.5)), state_of(Limited(norm=True, dropout=0.5))
    planned.micro_batch_size = 5
    for state in (failed, planned):
        torch.manual_seed(1)
        train_step(state, batch_of(), RECIPE, BufferSnapshot(state.model, CPU))
    assert failed.model.sizes == [10, 5, 5]
    assert failed.micro_batch_size == 5
    for name, tensor in planned.model.state_dict().items():
        assert torch.equal(failed.model.state_dict()[name], tensor)


def test_the_smaller_part_is_kept():
    state = state_of(Limited(5))
    snapshot = BufferSnapshot(state.model, CPU)
    train_step(state, batch_of(), RECIPE, snapshot)
    train_step(state, batch_of(), RECIPE, snapshot)
    assert state.model.sizes == [10, 5, 5, 5, 5]


@pytest.mark.parametrize(("norm", "limit"), [(False, 0), (True, 1)])
def test_too_little_memory_for_the_smallest_part(norm, limit):
    state = state_of(Limited(limit, norm))
    with pytest.raises(OutOfMemory, match="use a smaller --size or --arch"):
        train_step(state, batch_of(), RECIPE, BufferSnapshot(state.model, CPU))
    assert state.model.sizes[-1] == limit + 1


@pytest.mark.parametrize("n", [1, 3, 5])
def test_too_little_memory_for_a_part_that_another_image_joins(n, monkeypatch):
    monkeypatch.setattr(module.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(module.distributed, "sum_over_all", lambda mine: mine + 1)
    state = state_of(Limited(min(n - 1, 2), norm=True))
    with pytest.raises(OutOfMemory, match="use a smaller --size or --arch"):
        train_step(state, batch_of(n), RECIPE, BufferSnapshot(state.model, CPU))


def test_other_errors_are_not_replayed():
    class Broken(Limited):
        def forward(self, images):
            self.sizes.append(len(images))
            raise RuntimeError("shapes")

    state = state_of(Broken())
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(state, batch_of(), RECIPE, BufferSnapshot(state.model, CPU))
    assert state.model.sizes == [10]


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_parts_are_the_batch(n, most, pairs, mixed):
    batch = batch_of(n, mixed)
    parts = list(split_batch(batch, most, pairs))
    assert torch.equal(torch.cat([part.positions for part in parts]), batch.positions)
    assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
    sizes = [len(part.targets) for part in parts]
    assert max(sizes) <= max(most + pairs, min(n, 1 + pairs))
    if pairs and n > 1 and most > 1:
        assert min(sizes) > 1
    if mixed:
        assert torch.equal(torch.cat([part.mix.share for part in parts]), batch.mix.share)


@pytest.mark.parametrize(
    ("limit", "images", "norm", "size"),
    [
        (10**9, 100, False, 16),
        (10**9, 10**6, False, 256),
        (5, 1000, False, 4),
        (10**9, 3, False, 1),
        (10**9, 3, True, 2),
    ],
)
def test_the_largest_batch_that_fits(limit, images, norm, size):
    model = Limited(limit, norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = probe_batch_size(model, (1, 6, 6), images, TrainConfig(), CPU, torch.float32)
    assert found == size
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_on_the_processor_is_no_larger_than_its_memory(monkeypatch):
    kept = {"input": 36 * 4, "map": 4 * 16 * 4}
    monkeypatch.setattr(module, "free_memory", lambda: 1e6)
    small = probe_batch_size(Limited(), (1, 6, 6), 10**6, TrainConfig(), CPU, torch.float32)
    assert 64 <= small <= 256
    monkeypatch.setattr(module, "free_memory", lambda: 20 * sum(kept.values()) + 8 * 4 * (40 + 195))
    assert 2 <= probe_batch_size(Limited(), (1, 6, 6), 10**6, TrainConfig(), CPU, torch.float32) <= 16


def test_not_even_one_image_fits():
    with pytest.raises(OutOfMemory, match="single images"):
        probe_batch_size(Limited(0), (1, 6, 6), 100, TrainConfig(), CPU, torch.float32)
