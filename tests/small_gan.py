"""A small GAN on random samples, for whatever looks at its training."""

import lightning as L
import torch
from defaults import defaults
from torch.utils.data import DataLoader

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import ObjectiveSettings, Weight
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.settings import OptimizerSettings, SpeedSettings

UNET = {"name": "unet", "width": 4, "depth": 2, "max_width": 8}
UNET |= {"style_channels": 2, "region_channels": 2, "texture_octaves": 2}
SPADE = {**UNET, "name": "spade", "hidden": 4, "norm": "batch"}
PATCH = {"name": "patch", "width": 4, "layers": 2, "scales": 1}
PROJECTED = {"name": "projected", "width": 4, "mixed": 4}


def samples(count=8, side=32):
    rng = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, side, side), generator=rng, dtype=torch.uint8),
            "label": torch.randint(3, (side, side), generator=rng, dtype=torch.uint8),
        }
        for _ in range(count)
    ]


def settings(**changes):
    """The base recipe."""
    return defaults(ObjectiveSettings, **{"feature_matching": Weight(10.0)} | changes)


def build(
    batch=4,
    objective=None,
    generator=UNET,
    discriminator=PATCH,
    *,
    accumulate=1,
    speed=None,
    **optimizer,
):
    torch.manual_seed(0)
    return GAN(
        build_generator(generator, 3, 3),
        build_discriminator(discriminator, 3, 3),
        objective or Objective(settings(), bands=3, seed=0),
        num_classes=3,
        scaling=ImageScaling([0.0] * 3, [255.0] * 3),
        lr=1e-3,
        optimizer=defaults(OptimizerSettings, **optimizer),
        seed=0,
        global_batch=batch,
        accumulate=accumulate,
        speed=speed or defaults(SpeedSettings),
    )


def fit(module, epochs=1, callbacks=(), resume=None, **trainer):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, **trainer}
    runner = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    loader = DataLoader(samples(), batch_size=module.global_batch, num_workers=0)
    runner.fit(module, loader, ckpt_path=resume, weights_only=True)
    return runner
