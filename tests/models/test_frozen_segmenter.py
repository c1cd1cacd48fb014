import pytest
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.models.checkpoints import load_segmenter
from geoseg_gan.models.pretrained.frozen_segmenter import FrozenSegmenter
from geoseg_gan.utils.errors import UserError


def scaling(bands=3, dtype="uint8", high=255.0):
    return ImageScaling([0.0] * bands, [high] * bands, dtype)


def test_it_sees_what_the_segmenter_sees_and_passes_gradients_to_the_image_alone(
    segmenter, palette
):
    path, before = segmenter(), torch.random.get_rng_state()
    frozen = FrozenSegmenter(path, palette, scaling(high=510.0), 32)
    assert torch.equal(before, torch.random.get_rng_state())
    image = (torch.rand(2, 3, 32, 32) - 1).requires_grad_()
    # Its own values end at 255, the generator's at 510.
    network = load_segmenter(path).network
    torch.testing.assert_close(frozen(image), network(2 * image + 1))
    with torch.autocast("cpu", torch.bfloat16):
        frozen(image).float().square().sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    weights = frozen._network.state_dict()
    assert all(torch.equal(weights[n], value) for n, value in network.state_dict().items())
    assert not any(p.requires_grad for p in frozen._network.parameters())


def test_segmenters_that_do_not_fit_are_refused_in_one_line(segmenter, palette, tmp_path):
    other = type(palette).from_dict(
        {**palette.to_dict(), "classes": palette.to_dict()["classes"][:2]}
    )
    for path, *facts, message in (
        (tmp_path / "model.onnx", palette, scaling(), 32, "passes no gradients"),
        (segmenter(), other, scaling(), 32, r"holds \d classes .*, but data.palette has 2"),
        (segmenter(), palette, scaling(4), 32, "3-band uint8 images, but .* 4-band uint8"),
        (segmenter(), palette, scaling(), 36, "multiples of 8, not image_size=36"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            FrozenSegmenter(path, *facts)
        assert "\n" not in str(refusal.value)
