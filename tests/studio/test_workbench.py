import shutil

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass
from geoseg_gan.models.checkpoints import save_network
from geoseg_gan.models.loaded import load_generator
from geoseg_gan.studio.workbench import Workbench, drawn_mask, enlarged
from geoseg_gan.utils.errors import UserError


def colors_of(path, palette):
    """A mask by Pillow alone: each colour compared with those of the palette."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    label = np.full(pixels.shape[:2], IGNORE)
    for kind, entry in enumerate(palette.classes):
        label[(pixels == entry.color).all(-1)] = kind
    return label


def test_masks_are_the_middle_of_a_tile_or_a_file(bench, trained, palette, tmp_path):
    data, _ = trained
    made = bench()
    assert (made.size, made.stems) == (32, [f"train_{number:03d}" for number in range(6)])
    path = data / "train/masks/train_003.png"
    expected = colors_of(path, palette)[16:48, 16:48]
    assert np.array_equal(made.mask_of_tile("train_003"), expected)
    shutil.copy(path, tmp_path / "mine.png")
    assert np.array_equal(made.mask_of_file(tmp_path / "mine.png"), expected)
    assert np.array_equal(made.blank(2), np.full((32, 32), 2))


@pytest.mark.parametrize(
    ("name", "size", "color", "message"),
    [
        ("a.png", 64, (1, 2, 3), r"^a\.png: colour \(1, 2, 3\) in 4096 pixels"),
        ("a.png", 31, (250, 62, 119), r"^a\.png is 31x31, smaller than the 32x32 px"),
        ("a.gif", 64, (250, 62, 119), r"^a\.gif is no mask: give one of \.png"),
    ],
)
def test_a_file_that_is_no_mask_is_refused_by_its_name(bench, tmp_path, name, size, color, message):
    Image.new("RGB", (size, size), color).save(tmp_path / name)
    with pytest.raises(UserError, match=message):
        bench().mask_of_file(tmp_path / name)


def test_the_noise_is_that_of_the_seed(bench):
    made = bench()
    label = made.mask_of_tile("train_000")
    images = [made.generate("G_e002.pt", label, seed).image for seed in (0, 1, 0)]
    assert np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[1])
    assert images[0].shape == (32, 32, 3) and images[0].dtype == np.uint8
    other = made.generate("G_e001.pt", label, 0).image
    assert made.generators == ["G_e002.pt", "G_e001.pt"]
    assert not np.array_equal(images[0], other)


def test_the_agreement_is_the_mean_iou_over_the_classes_of_the_mask(bench, segmenter):
    made = bench(f"segmenter_ckpt={segmenter()}")
    label = np.where(np.arange(32) < 16, 0, 1).astype(np.uint8)[None].repeat(32, 0)
    label[0] = IGNORE
    reading = made.generate("G_e002.pt", label, 0).reading
    found = reading.label
    assert np.array_equal(found == IGNORE, label == IGNORE)
    for kind in range(3):
        either = ((found == kind) | (label == kind)).sum()
        both = ((found == kind) & (label == kind)).sum()
        iou = both / either if either else np.nan
        assert np.isclose(reading.iou[kind], iou, equal_nan=True)
    assert np.isclose(reading.agreement, reading.iou[:2].mean())
    assert bench().generate("G_e002.pt", label, 0).reading is None


def test_a_pair_is_written_as_generate_writes_it(bench, tmp_path, palette):
    made = bench()
    result = made.generate("G_e002.pt", made.mask_of_tile("train_001"), 0)
    image, mask = made.write_pair(tmp_path / "out", 7, result)
    assert (image.name, mask.name) == ("pair_00007_img.jpg", "pair_00007_mask.png")
    assert np.array_equal(colors_of(mask, palette), result.label)
    with Image.open(image) as picture:
        assert picture.format == "JPEG" and JpegImagePlugin.get_sampling(picture) == 0  # 4:4:4
        assert np.abs(np.asarray(picture, int) - result.image).mean() < 6


def test_a_generator_of_other_data_is_refused(bench, trained):
    _, run = trained
    loaded = load_generator(run / "G_e001.pt")
    classes = [PaletteClass(c.name, [v ^ 1 for v in c.color]) for c in loaded.facts.palette.classes]
    object.__setattr__(loaded.facts, "palette", Palette(classes))
    save_network(run / "G_e001.pt", "generator", loaded.network, loaded.facts, 1)
    made = bench()
    with pytest.raises(UserError, match=r"G_e001\.pt was trained on other data than G_e002\.pt"):
        made.generate("G_e001.pt", made.blank(0), 0)


def test_without_the_training_tiles_masks_can_be_drawn(trained, composed, tmp_path):
    _, run = trained
    state = torch.load(run / "G_e002.pt", weights_only=True)
    state["config"]["data_root"] = str(tmp_path / "elsewhere")
    torch.save(state, run / "G_e002.pt")
    with pytest.warns(UserWarning, match=r"masks can only be drawn .*train/images is missing"):
        made = Workbench(composed("studio", f"gen_ckpt={run / 'G_e002.pt'}", "trainer=cpu"))
    assert made.stems == [] and made.generate("G_e002.pt", made.blank(1), 0).image.any()
    with pytest.raises(UserError, match="data_root=none must hold train/images"):
        settings = (f"gen_ckpt={run / 'G_e002.pt'}", "data_root=none", "trainer=cpu")
        Workbench(composed("studio", *settings))


def layer_of(colors, zoom, alpha=255):
    """What a browser gives of a drawing: colours (H, W, 3), nothing drawn where they are -1."""
    drawn = (colors >= 0).all(-1, keepdims=True)
    layer = np.concatenate([np.where(drawn, colors, 0), np.where(drawn, alpha, 0)], -1)
    return enlarged(layer.astype(np.uint8), zoom)


@pytest.mark.parametrize("zoom", [1, 4])
def test_what_is_drawn_lies_over_the_mask(palette, zoom):
    below = np.zeros((4, 5), np.uint8)
    colors = np.full((4, 5, 3), -1)
    colors[1, 1:4] = palette.classes[1].color
    colors[2, 2] = palette.classes[2].color
    colors[3, 0] = palette.ignore[0]
    expected = [[0] * 5, [0, 1, 1, 1, 0], [0, 0, 2, 0, 0], [IGNORE, 0, 0, 0, 0]]
    assert drawn_mask(below, layer_of(colors, zoom), palette).tolist() == expected
    # What is nearly transparent, as at the edge of a stroke, is not drawn.
    assert not drawn_mask(below, layer_of(colors, zoom, alpha=100), palette).any()


def test_mixed_colours_take_the_class_of_the_nearest_pixel_not_of_the_nearest_colour():
    names = {"Red": [255, 0, 0], "Blue": [0, 0, 255], "Purple": [128, 0, 128]}
    palette = Palette([PaletteClass(name, color) for name, color in names.items()])
    below = np.zeros((1, 6), np.uint8)
    mixed = [[255, 1, 0], [180, 0, 75], [140, 0, 115], [100, 0, 155], [60, 0, 195], [0, 0, 255]]
    label = drawn_mask(below, layer_of(np.array([mixed]), 1), palette)
    assert label.tolist() == [[0, 0, 0, 1, 1, 1]]
    mixed[2] = [128, 2, 126]  # as good as one of the palette: no mixture
    assert drawn_mask(below, layer_of(np.array([mixed]), 1), palette)[0, 2] == 2


def test_a_drawing_of_another_size_is_refused(palette):
    for shape in ((31, 32, 4), (64, 32, 4), (16, 16, 4), (32, 32, 3)):
        with pytest.raises(UserError, match="another size than the mask"):
            drawn_mask(np.zeros((32, 32), np.uint8), np.zeros(shape, np.uint8), palette)
