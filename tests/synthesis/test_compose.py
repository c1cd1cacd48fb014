from dataclasses import replace

import numpy as np
import pytest
import torch
from defaults import defaults
from PIL import Image
from synthesis_helpers import GEOMETRY, candidate_masks, facts, files, refused

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import read_image, resize_image, resize_label
from geoseg_gan.data.jitter import sample_image, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import scan
from geoseg_gan.data.settings import JitterSettings, TransplantStep
from geoseg_gan.data.synthetic import read_manifest
from geoseg_gan.data.transplant import Transplanter, region_map
from geoseg_gan.models.loaded import load_generator
from geoseg_gan.synthesis.compose import Blend, Composition
from geoseg_gan.synthesis.filter import PairFilter
from geoseg_gan.synthesis.generate_images import generate_batches, generate_images
from geoseg_gan.synthesis.settings import ComposeSettings

CPU = torch.device("cpu")
STEP = defaults(TransplantStep, p=0.7, max_share=0.8, min_pixels=8)
JITTER = defaults(JitterSettings, **GEOMETRY, transplant=STEP)


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=4, val=0)


@pytest.fixture
def index(root, palette):
    return scan(find_pairs(root, "train"), MaskReader(palette))


@pytest.fixture
def candidates(index, palette):
    reader = MaskReader(palette)

    def make(generate="regions", fit="crop", share=0.5):
        compose = defaults(ComposeSettings, generate, share)
        knobs = {"fit": fit, "jitter": JITTER, "compose": compose}
        transplanter = Transplanter.of_masks(STEP, index, reader)
        return candidate_masks(index.pairs, reader, transplanter=transplanter, **knobs)

    return make


def first(count, candidates):
    return [candidates[number] for number in range(count)]


def warped(candidate, index, palette, fit):
    """The source's image as the candidate shows it, and where it shows a graft."""
    [pair] = [pair for pair in index.pairs if pair.stem == candidate.source]
    image, (label, _) = read_image(pair.image), MaskReader(palette).read(pair.mask)
    covered = np.full_like(label, IGNORE)
    covered = covered if candidate.graft is None else candidate.graft.apply(covered)
    if fit == "resize":
        image = resize_image(image, 32)
        label, covered = resize_label(label, 32), resize_label(covered, 32)
    maps = candidate.warp.source_map(*label.shape, candidate.window)
    return sample_image(image, maps), sample_label(covered, maps) != IGNORE


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("what", ["grafts", "regions"])
def test_what_is_not_generated_is_the_real_image_under_the_mask_s_geometry(
    generator, root, index, palette, candidates, what, fit
):
    loaded = load_generator(generator(root))
    drawn = candidates(what, fit)
    batches = generate_batches(loaded, drawn, [list(range(24))], num_workers=0, device=CPU)
    outcomes = set()
    for candidate, image, _ in (row for batch in batches for row in batch):
        real, grafted = warped(candidate, index, palette, fit)
        if image is None:
            assert not grafted.any() and not candidate.composition.generated.any()
            outcomes.add("dropped")
            continue
        own = candidate.composition.generated
        numbered = {"seed": 3, "indices": [candidate.index], "device": CPU}
        (alone,) = generate_images(loaded, [candidate.label], **numbered)
        weight = Blend.of([candidate.composition], [None], 0, CPU).weight[0].numpy()
        assert ((weight > 0.5) == own)[(weight < 0.01) | (weight > 0.99)].all()
        np.testing.assert_array_equal(image[weight == 0], real[weight == 0])
        np.testing.assert_array_equal(image[weight == 1], alone[weight == 1])
        mixed = weight[..., None] * alone + (1 - weight[..., None]) * real
        np.testing.assert_allclose(image, mixed, atol=1)
        assert own[grafted].all()
        if what == "grafts":
            assert not own[~grafted].any()
        else:  # whole regions or none of them, but for what was pasted; never ignored pixels
            regions = region_map(candidate.label)
            for number in np.unique(regions[~grafted]):
                assert len(np.unique(own[~grafted & (regions == number)])) == 1
            assert not own[~grafted & (candidate.label == IGNORE)].any()
        outcomes.add("generated")
    assert "generated" in outcomes and ("dropped" in outcomes or what == "regions")


def test_regions_are_generated_as_often_as_asked_for(candidates):
    few, half, every = (
        np.mean([own.composition.share for own in first(24, candidates(share=share))])
        for share in (0.05, 0.5, 1)
    )
    assert few < half < every and every > 0.9


def test_a_candidate_of_which_nothing_is_generated_is_dropped_and_told_why(candidates):
    bare = [own for own in first(24, candidates("grafts")) if not own.composition.share]
    assert bare and all(own.composition.real is None for own in bare)
    decision = PairFilter().decide(bare[0], None)
    assert not decision.kept and decision.why == "nothing of it would be generated"
    assert replace(bare[0], lacks=("Water",)).unfit == "shows no Water"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_real_values_outside_the_scaling_are_kept(dtype):
    real = np.array([[[3.0], [250.0], [7.0], [100.0]]]).astype(dtype)
    generated = np.zeros((1, 4), bool)
    blend = Blend.of([Composition(generated, real)], [None], 0, CPU)
    scaling = ImageScaling([50], [200], dtype)
    values = scaling.rounded(blend.over_real(scaling.to_values(torch.zeros(1, 1, 1, 4))))
    np.testing.assert_array_equal(values.numpy()[0], real)


@pytest.mark.parametrize("what", ["all", "regions"])
def test_the_same_bytes_whatever_batch_and_workers(run_generate, generator, root, what):
    checkpoint = generator(root)
    settings = {"jitter": JITTER, "num_samples": 6, "variants": 2}
    settings["compose"] = defaults(ComposeSettings, what, 0.5, 0.8)
    one = run_generate(checkpoint, "one", bs=1, **settings)
    many = run_generate(checkpoint, "many", bs=4, num_workers=2, **settings)
    assert files(one) == files(many)


def test_the_folder_tells_what_is_generated_and_takes_no_other(run_generate, generator, root):
    checkpoint = generator(root)
    settings = {"jitter": JITTER, "num_samples": 8}
    grafts, regions = (defaults(ComposeSettings, what) for what in ("grafts", "regions"))
    folder = run_generate(checkpoint, "out", compose=grafts, **settings)
    lines = read_manifest(folder)
    assert {line["kept"] for line in lines} == {True, False}
    for line in lines:
        assert line["kept"] == (line["generated_share"] > 0) == ("why" not in line)
        assert (folder / f"pair_{line['index']:05d}_img.jpg").is_file() == line["kept"]
    composed = facts(folder)["config"]["compose"]
    assert composed == {"generate": "grafts", "share": 0.5, "match": 0.0, "source": "generator"}
    with refused("compose"):
        run_generate(checkpoint, "out", compose=regions, **settings)


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (defaults(ComposeSettings, "grafts"), r"jitter\.transplant\.p=0"),
        (defaults(ComposeSettings, "none"), r"compose\.generate=none keeps the real image"),
        (defaults(ComposeSettings, "some"), r"compose\.generate=some"),
        (defaults(ComposeSettings, "regions", share=0), r"compose\.share=0:"),
        (defaults(ComposeSettings, match=1.5), r"compose\.match=1\.5:"),
    ],
)
def test_settings_that_cannot_be_are_refused(run_generate, tmp_path, compose, message):
    jitter = JITTER if compose.generate == "none" else defaults(JitterSettings)
    with refused(message):
        run_generate("none.pt", "out", compose=compose, jitter=jitter)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "compose", [defaults(ComposeSettings, "none"), defaults(ComposeSettings, match=0.5)]
)
def test_real_images_of_another_kind_than_the_generators_are_refused(
    run_generate, generator, make_folder, tmp_path, compose
):
    jitter = defaults(JitterSettings)
    for kind in ({"bands": 5}, {"dtype": "uint16"}):
        root = make_folder(tmp_path / f"{kind}", train=2, val=0, **kind)
        with refused(r"data_root=.* holds images with \d bands? of uint.*makes 3 bands of uint8"):
            run_generate(generator(root), "out", compose=compose, jitter=jitter)
    assert not (tmp_path / "out").exists()


def test_where_a_real_image_has_no_data_the_kept_texture_is_ignored(root, index, candidates):
    for pair in index.pairs:
        pixels = read_image(pair.image)
        alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        alpha[:, ::3] = 0
        Image.fromarray(np.concatenate([pixels, alpha], -1)).save(pair.image)
    shown = [candidate for candidate in first(8, candidates("regions")) if candidate.composition]
    assert shown
    for candidate in shown:
        share = (candidate.label == IGNORE).mean()
        assert (
            0.2 < share < 0.5
            and not candidate.composition.generated[candidate.label == IGNORE].any()
        )
