"""A segmenter's data module with small settings."""

from types import SimpleNamespace

from defaults import defaults

from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.settings import FlipStep, JitterSettings, MixingSettings

FLIPS = defaults(JitterSettings, flip=defaults(FlipStep, 0.5))


def make(root, settings, **changes):
    knobs = {
        "image_size": 32,
        "batch_size": 4,
        "jitter": FLIPS,
        "seed": 0,
        "mixing": defaults(MixingSettings),
    } | changes
    return SegmenterDataModule(root, settings, **knobs)


def ready(root, settings, rank=0, world=1, **changes):
    data = make(root, settings, **changes)
    data.prepare_data()
    data.setup()
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def stems(data, epoch=0):
    """Stems of an epoch's batches, a list each."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [batch["stem"] for batch in loader]
