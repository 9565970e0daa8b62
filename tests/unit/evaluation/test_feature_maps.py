"""The feature maps of any network: which output has them, and where they lie in the image."""

import pytest
import torch
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.evaluation.feature_maps import Site, find_last_site, hooked, last_maps, spread
from imgclf.models.build import build_model, head_of

# arch, size, the layer, how its output lies, its grid
LAST = [
    ("cnn_zero_to_all", (28, 28), "features.5", "maps", (4, 4)),
    ("lenet", (28, 28), "features.4", "maps", (8, 8)),
    ("cnn_two_layer", (28, 28), "features.4", "maps", (14, 14)),
    ("cnn_deep", (28, 28), "features.7", "maps", (7, 7)),
    ("cnn_keras", (28, 28), "features.7", "maps", (7, 7)),
    ("cnn_cifar", (32, 32), "features.7", "maps", (8, 8)),
    ("cnn_imagefolder", (64, 128), "features.4", "maps", (26, 58)),
    ("small_vgg11_bn", (32, 32), "features.27", "maps", (2, 2)),
    ("small_resnet18", (32, 32), "stages", "maps", (4, 4)),
    ("speednet_small", (32, 32), "groups", "maps", (3, 3)),
    ("resnet18", (64, 64), "layer4", "maps", (2, 2)),
    ("efficientnet_lite0", (64, 64), "bn2", "maps", (2, 2)),
    ("mobilenetv3_small_050", (64, 64), "blocks", "maps", (2, 2)),
    ("convnext_atto", (64, 64), "norm_pre", "maps", (2, 2)),
    ("vit_tiny_patch16_224", (64, 64), "blocks.11.norm1", "tokens", (4, 4)),
    ("vit_tiny_patch16_224", (64, 128), "blocks.11.norm1", "tokens", (4, 8)),
    ("swin_tiny_patch4_window7_224", (112, 112), "norm", "last", (4, 4)),
    ("torchvision:swin_t", (64, 64), "permute", "maps", (2, 2)),
]
OF_GRAY = ("lenet", "resnet18", "vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "size", "name", "layout", "grid"), LAST, ids=[f"{row[0]}-{row[1][1]}" for row in LAST]
)
def test_the_last_layer_with_places_is_found(arch, size, name, layout, grid):
    channels = 1 if arch in OF_GRAY else 3
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch, 3, channels, size)).eval()
    site = find_last_site(model, torch.randn(1, channels, *size))
    assert (site.name, site.layout, site.grid) == (name, layout, grid)
    outputs = []
    with torch.no_grad(), hooked({model.get_submodule(site.name): lambda *call: outputs.append(call[2])}):
        model(torch.randn(2, channels, *size))
    maps = site.maps(outputs[site.call])
    assert maps.shape[0] == 2
    assert maps.shape[2:] == grid


def test_tokens_are_laid_out_in_rows_behind_the_class_token():
    tokens = torch.arange(7.0)[None, :, None].expand(1, 7, 2)
    site = Site("", 0, "tokens", (2, 3), 1, (1.0, 1.0), False)
    assert site.maps(tokens)[0, 1].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert Site("", 0, "last", (2, 3), 0, (1.0, 1.0), False).maps(torch.zeros(1, 2, 3, 5)).shape == (1, 5, 2, 3)


def test_a_network_without_places_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ConfigError, match=r"no feature maps.*occlusion"):
        find_last_site(model, torch.zeros(1, 3, 2, 2))


def test_a_head_whose_rows_sum_to_zero_hides_no_layer():
    """As that of a probe does."""
    model = build_model(ModelConfig("vit_tiny_patch16_224", 3, 3, (64, 64))).eval()
    head = head_of(model)
    with torch.no_grad():
        head.weight -= head.weight.mean(0)
    assert find_last_site(model, torch.randn(1, 3, 64, 64)).name == "blocks.11.norm1"


def test_a_module_that_is_called_twice_is_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Linear(2, 2)

        def forward(self, x):
            x = self.act(self.conv(self.act(x)))
            return self.head(x.mean((2, 3)))

    model = Twice().eval()
    site = find_last_site(model, torch.randn(1, 1, 6, 6))
    assert (site.name, site.call, site.grid) == ("act", 1, (4, 4))


def test_the_image_stays_as_it_was_where_a_network_writes_into_it():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.randn(1, 1, 6, 6)
    before = image.clone()
    assert find_last_site(model, image).name == "1"
    assert torch.equal(image, before)


def test_cells_lie_where_they_look_at_the_image():
    """One cell of LeNet's 8×8 sees 14 pixels, the first those from 0 to 13: its center is at 6.5."""
    model = build_model(ModelConfig("lenet", 2, 1, (28, 28))).eval()
    site = find_last_site(model, torch.randn(1, 1, 28, 28))
    heat = torch.zeros(2, 8, 8)
    heat[0, 0, 0] = heat[1, 7, 3] = 1
    pixels = spread(heat, site, (28, 28))
    assert pixels[0, :7, :7].min() == 1
    assert pixels[0, 7, 7] == pytest.approx(0.5625)  # a quarter of a step away, twice
    assert pixels[0, 9:, :].max() == 0
    row, column = divmod(int(pixels[1].argmax()), 28)
    assert (row, column) in [(row, column) for row in range(20, 28) for column in (12, 13)]


def test_one_cell_is_the_whole_image():
    site = Site("", 0, "maps", (1, 2), 0, (4.0, 2.0), False)
    assert spread(torch.tensor([[[1.0, 1.0]]]), site, (4, 4)).tolist() == [[[1.0] * 4] * 4]


def test_stages_come_in_their_order():
    model = build_model(ModelConfig("resnet18", 2, 3, (64, 64))).eval()
    found = last_maps(model, torch.randn(1, 3, 64, 64))
    assert [site.grid for site, _ in found] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert [maps.shape[2:] for _, maps in found] == [site.grid for site, _ in found]


@pytest.mark.parametrize(
    ("pooled", "name", "grid", "prefix"), [(16, "2.norm", (4, 4), 0), (17, "2.norm", (4, 4), 1), (15, "0.0", (8, 8), 0)]
)
def test_tokens_that_were_pooled_have_the_shape_of_the_image(pooled, name, grid, prefix):
    """Where their number gives no such grid, the layer before them is the last with places."""
    patches = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.Flatten(2))
    model = nn.Sequential(patches, nn.Linear(64, pooled), Tokens(4), nn.Flatten(), nn.Linear(4 * pooled, 2)).eval()
    site = find_last_site(model, torch.randn(1, 1, 16, 16))
    assert (site.name, site.grid, site.prefix) == (name, grid, prefix)


class Tokens(nn.Module):
    """Takes features × tokens for tokens × features, and norms these."""

    def __init__(self, features):
        super().__init__()
        self.norm = nn.LayerNorm(features)

    def forward(self, x):
        return self.norm(x.transpose(1, 2))
