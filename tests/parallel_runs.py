"""Short trainings of small GANs, in one process or as one of several, for what compares them."""

import os
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import torch
from defaults import defaults
from small_gan import PATCH, SPADE, UNET, build, samples, settings
from torch.utils.data import DataLoader

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import (
    DiffAugmentSettings,
    DiversitySettings,
    PenaltySettings,
    Weight,
)
from geoseg_gan.training.trainer import build_trainer
from geoseg_gan.utils.device import TrainerSettings

BATCH, STEPS = 4, 3
OASIS_DIS = {"name": "oasis", "width": 4, "depth": 2}
OASIS_LOSS = {"adversarial": "classes", "feature_matching": Weight(0.0), "labelmix": Weight(10.0)}
VARIED = {
    "diversity": defaults(DiversitySettings, 2.0, limit=9.0),
    "r1": defaults(PenaltySettings, 10.0, every=2),
    "augment": defaults(DiffAugmentSettings, p=0.7),
}
SPADE_PIXEL_NORM = SPADE | {"spectral_norm": True, "norm": "pixel"}
RECIPES = {
    "hinge": (UNET, PATCH, {}),
    "varied": (UNET, PATCH, VARIED),
    "oasis": (SPADE_PIXEL_NORM, OASIS_DIS, OASIS_LOSS),
    "batch_norm": (SPADE, PATCH, {}),
}
"""Generator, discriminator and recipe by name."""


class Spy(L.Callback):
    """Records both networks' gradients as the first step uses them."""

    def __init__(self):
        self.gradients = {}

    def on_train_start(self, trainer, module):
        for name, optimizer in zip("dg", trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(self.record(name))

    def record(self, name):
        def hook(optimizer, *_):
            if name not in self.gradients:
                params = [p for group in optimizer.param_groups for p in group["params"]]
                self.gradients[name] = [p.grad.clone() for p in params]

        return hook


def data():
    """Pairs of which each has other classes and other ignored pixels."""
    pairs = samples(BATCH * STEPS)
    for number, pair in enumerate(pairs):
        pair["label"][: 4 * (number % 4)] = IGNORE
        if number % 3 == 0:
            pair["label"][pair["label"] == 2] = 1
    return pairs


def train(recipe, folder, accumulate=1, rank=0, world=1):
    """Trains on `STEPS` global batches and returns first gradients, last state and last figures."""
    generator, discriminator, changes = RECIPES[recipe]
    module = build(
        BATCH,
        Objective(settings(**changes), bands=3, seed=0),
        generator,
        discriminator,
        accumulate=accumulate,
        ema=0.9,
    )
    spy = Spy()
    config = SimpleNamespace(
        trainer=defaults(TrainerSettings, "cpu"),
        out_dir=Path(folder) / f"{recipe}_{accumulate}",
        epochs=1,
        devices=world,
        precision="32-true",
    )
    trainer = build_trainer(config, steps=1, callbacks=[spy])
    local = BATCH // world
    mine = [n * BATCH + rank * local + i for n in range(STEPS) for i in range(local)]
    trainer.fit(module, DataLoader(data(), batch_size=local, sampler=mine, num_workers=0))
    figures = {name: float(value) for name, value in trainer.logged_metrics.items()}
    state = {n: v for n, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    return {"gradients": spy.gradients, "state": state, "figures": figures}


@dataclass
class Ranks:
    """Two processes, and where each leaves what it came to."""

    folder: str
    devices: int = 2
    trainer: TrainerSettings = field(default_factory=lambda: defaults(TrainerSettings, "cpu"))
    out_dir: str = field(default_factory=tempfile.mkdtemp)  # which launch holds


def train_as_rank(config):
    """Trains all recipes as one of several processes."""
    rank = int(os.environ["RANK"])
    runs = [(recipe, 1, recipe) for recipe in RECIPES] + [("oasis", 2, "oasis_accumulated")]
    for recipe, accumulate, name in runs:
        found = train(recipe, config.folder, accumulate, rank, config.devices)
        torch.save(found, Path(config.folder) / f"{name}_{rank}.pt")


def free_port():
    """A port on which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
