"""The network of the speed recipe: its frozen whitening, its start as a chain of identities, its learning."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig, TrainConfig
from imgclf.models.build import head_of
from imgclf.models.speedrun import LOGIT_SCALE, NOISE, OFFSET_SCALE, SpeedNet, Whitening, speednet
from imgclf.models.summary import layer_table
from imgclf.training.optim import make_optimizer


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small only wait for their threads, above all where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smooth_images(n: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    """Images whose neighboring pixels and channels agree, as those of photos do: far from white."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, channels, side + 2, side + 2, generator=generator)
    return F.avg_pool2d(noise, 3, stride=1) * 3 + noise.mean(1, keepdim=True)[..., 1:-1, 1:-1]


def second_moments(maps: torch.Tensor) -> torch.Tensor:
    values = maps.transpose(0, 1).flatten(1).double()
    return values @ values.T / values.shape[1]


@settings(max_examples=15)
@given(channels=st.integers(1, 4), n=st.integers(2, 40), side=st.integers(4, 12), seed=st.integers(0, 99))
def test_whitened_maps_have_variance_one_and_do_not_go_together(channels, n, side, seed):
    pixels = smooth_images(n, channels, side, seed)
    layer = Whitening(channels)
    layer.bias.data.zero_()
    layer.init_from(pixels)
    maps = layer(pixels)
    half = 4 * channels
    assert torch.equal(maps[:, half:], -maps[:, :half])
    moments = second_moments(maps[:, :half])
    raw = torch.linalg.eigvalsh(second_moments(F.unfold(pixels, 2).unflatten(1, (half, 1)).squeeze(2))).flip(0)
    shrunk = raw.clamp(min=0) / (raw.clamp(min=0) + NOISE)  # 1, but for directions that hardly vary
    assert torch.allclose(moments, torch.diag(shrunk), atol=2e-3)


def test_whitening_does_not_depend_on_the_order_or_on_other_images():
    pixels = smooth_images(700, 3, 6)  # more than one chunk
    one, other = Whitening(3), Whitening(3)
    one.init_from(pixels)
    other.init_from(pixels.flip(0))
    assert torch.allclose(one.weight, other.weight, atol=1e-4)
    other.init_from(pixels)
    assert torch.equal(one.weight, other.weight)


def test_black_images_are_no_reason_for_infinite_filters():
    layer = Whitening(3)
    layer.init_from(torch.zeros(3, 3, 5, 5))
    assert layer.weight.isfinite().all()
    assert layer.weight.abs().max() <= NOISE**-0.5 * 1.001


def test_the_whitening_is_saved_and_never_trained():
    spec = ModelConfig("speednet", 4, 3, (16, 16))
    torch.manual_seed(0)
    model = speednet(spec)
    assert isinstance(model, SpeedNet)
    images = smooth_images(16, 3, 16)
    model.init_from(images)
    model.requires_grad_(True)  # as training does after epochs in which all but the head is frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(optimizer="sgd", weight_decay=0.1, momentum=0.85, nesterov=True)
    optimizer = make_optimizer(model, config, 0.1)
    F.cross_entropy(model(images), torch.arange(16) % 4).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "whitening.weight" in before
    assert "whitening.weight" not in changed
    assert {name for name, _ in model.named_parameters()} <= changed

    twin = speednet(spec)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(images), model.eval()(images))


def test_a_convolution_hands_its_input_on_at_the_start():
    torch.manual_seed(0)
    first, second = [
        m for m in speednet(ModelConfig("speednet", 10, 3, (32, 32))).groups[1] if isinstance(m, nn.Conv2d)
    ]
    maps = torch.rand(2, 24, 8, 8)
    assert torch.allclose(first(maps)[:, :24], maps, atol=1e-6)
    assert not torch.allclose(first(maps)[:, 24:48], maps, atol=0.1)
    maps = torch.rand(2, 64, 8, 8)
    assert torch.allclose(second(maps), maps, atol=1e-6)


def test_an_offset_learns_64_times_as_fast_and_the_logits_are_small():
    torch.manual_seed(0)
    model = speednet(ModelConfig("speednet", 3, 1, (9, 9))).eval()
    offset = model.groups[1][3]
    maps = torch.zeros(1, 64, 2, 2)
    offset(maps).mean().backward()
    with torch.no_grad():
        offset.value -= offset.value.grad
    plain = torch.tensor(-1 / 64)  # what a step of rate 1 would do to a number that is simply added
    assert torch.allclose(offset(maps), plain * OFFSET_SCALE**2)
    images = torch.rand(2, 1, 9, 9)
    features = model.pool(model.groups(model.whitening(images))).flatten(1)
    assert torch.allclose(model(images), features @ model.head.weight.T * LOGIT_SCALE, atol=1e-6)
    assert head_of(model) is model.head


@pytest.mark.parametrize(("channels", "size"), [(1, (9, 9)), (3, (20, 33)), (7, (16, 16))])
def test_any_channels_and_sizes_and_the_layer_table_counts_all_weights(channels, size):
    model = speednet(ModelConfig("speednet", 5, channels, size))
    model.init_from(torch.rand(3, channels, *size))
    assert model(torch.rand(2, channels, *size)).shape == (2, 5)
    rows = layer_table(model, size, channels)
    assert sum(row.params for row in rows) == sum(p.numel() for p in model.parameters())
    assert rows[0].shape == (8 * channels, size[0] - 1, size[1] - 1)


def test_it_tells_stripes_from_stripes_within_thirty_steps():
    torch.manual_seed(0)
    rows = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 16, 1).expand(8, 3, 16, 16)
    images = torch.cat([rows, rows.transpose(2, 3)]) + 0.5 * torch.randn(16, 3, 16, 16)
    targets = torch.arange(16) // 8
    model = SpeedNet(ModelConfig("speednet", 2, 3, (16, 16)), maps=(16, 16, 16))
    model.init_from(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.85, nesterov=True)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets, label_smoothing=0.2).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == targets).all()
