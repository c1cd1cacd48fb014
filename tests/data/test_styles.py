import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import FLIPS

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import read_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import scan
from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.settings import MatchStep, MixingSettings
from geoseg_gan.data.styles import StyleMatcher, Styles, match_styles


@pytest.fixture
def four(make_folder, tmp_path, palette):
    """The index of four tiles."""
    return scan(find_pairs(make_folder(tmp_path / "four", 4, 0), "train"), MaskReader(palette))


def test_matching_moves_mean_and_spread_of_a_class_as_far_as_asked():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.2
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[:, 8:], labels[:, 0] = 1, IGNORE
    styles = torch.full((2, 2, 3, 3), torch.nan)
    styles[1, 0, 1], styles[1, 1, 1] = torch.tensor([-0.5, 0.0, 0.5]), 0.3
    for match in (0.5, 1.0):
        moved = match_styles(images, labels, styles, match)
        assert torch.equal(moved[0], images[0]) and torch.equal(moved[1, :, :8], images[1, :, :8])
        before, after = images[1, :, 8:].flatten(1), moved[1, :, 8:].flatten(1)
        mean = torch.lerp(before.mean(1), styles[1, 0, 1], match)
        spread = torch.lerp(before.std(1, correction=0), styles[1, 1, 1], match)
        torch.testing.assert_close(after.mean(1), mean)
        torch.testing.assert_close(after.std(1, correction=0), spread)


def test_a_style_is_that_of_the_class_in_another_tile(four, palette):
    reader, scaling = MaskReader(palette), ImageScaling([0] * 3, [255] * 3)
    styles = Styles.of_tiles(four.pairs, reader, scaling)
    source = four.pairs[1]
    own = read_image(source.image)[reader.read(source.mask)[0] == 2] / 127.5 - 1
    np.testing.assert_allclose(styles.values[1, :, 2], [own.mean(0), own.std(0)], atol=1e-4)
    drawn = [styles.draw(np.random.default_rng(seed), source.stem) for seed in range(40)]
    found = {int(np.flatnonzero((styles.values[:, 0, 2] == d[0, 2]).all(1))[0]) for d in drawn}
    assert found == {0, 2, 3}
    alone = Styles(styles.stems[1:2], styles.values[1:2])
    assert np.isnan(alone.draw(np.random.default_rng(0), source.stem)).all()


@pytest.mark.parametrize(("dtype", "high"), [("uint8", 255.0), ("uint16", 4000.0)])
def test_a_sample_s_classes_take_on_other_colours_in_its_stored_type(dtype, high):
    rng = np.random.default_rng(0)
    pixels = (rng.normal(0.5, 0.05, (3, 16, 16)) * high).astype(dtype)
    label = np.zeros((16, 16), np.uint8)
    label[:, 8:], label[0] = 1, IGNORE
    values = np.full((1, 2, 2, 3), np.nan, np.float32)
    values[0, :, 1] = [[-0.4, 0.0, 0.4], [0.1, 0.1, 0.1]]
    styles, scaling = Styles(["other"], values), ImageScaling([0.0] * 3, [high] * 3, dtype)

    def matched(p, amount, serial=3):
        sample = {"image": torch.from_numpy(pixels), "label": torch.from_numpy(label), "stem": "a"}
        StyleMatcher(MatchStep(p, amount), styles, scaling, 0).apply(sample, serial)
        return sample["image"].numpy()

    moved = matched(1.0, 1.0)
    assert moved.dtype == dtype and moved.shape == pixels.shape
    inside = label == 1
    np.testing.assert_array_equal(moved[:, ~inside], pixels[:, ~inside])
    mean = moved[:, inside].mean(1) / high * 2 - 1
    np.testing.assert_allclose(mean, [-0.4, 0.0, 0.4], atol=0.01)
    np.testing.assert_allclose(moved[:, inside].std(1) / high * 2, 0.1, atol=0.01)
    np.testing.assert_array_equal(matched(1.0, 0.0), pixels)
    changed = [not np.array_equal(matched(0.5, 1.0, serial), pixels) for serial in range(40)]
    assert changed == [not np.array_equal(matched(0.5, 1.0, n), pixels) for n in range(40)]
    assert 10 < sum(changed) < 30


def test_real_pairs_take_on_the_colours_of_synthetic_ones(root, settings, made):
    def batches(p):
        data = SegmenterDataModule(
            root, settings, image_size=32, batch_size=4, jitter=FLIPS, seed=0,
            mixing=defaults(MixingSettings), synthetic=[made], synthetic_ratio=0.5,
            match=MatchStep(p, 1.0),
        )  # fmt: skip
        data.setup()
        return data, list(data.train_dataloader())

    (data, matched), (_, plain) = batches(1.0), batches(0.0)
    real, made_there = data.train_dataset.parts
    assert made_there.matcher is None and len(real.matcher.styles.stems) == 5
    scaling = data.scaling()
    styles, checked = real.matcher.styles.values, 0
    for batch, before in zip(matched, plain, strict=True):
        assert batch["stem"] == before["stem"] and torch.equal(batch["label"], before["label"])
        for row, stem in enumerate(batch["stem"]):
            image, label = batch["image"][row], batch["label"][row]
            if stem.startswith("pair_"):
                assert torch.equal(image, before["image"][row])
                continue
            values = scaling.to_network(image[None])[0][:, label == 1]
            if values.shape[1] > 100:  # the others may have left the range of the stored type
                nearest = np.abs(styles[:, 0, 1] - values.mean(1).numpy()).max(1).min()
                assert nearest < 0.06
                checked += 1
    assert checked
