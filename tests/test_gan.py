import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.errors import UserError
from geoseg_gan.gan import GAN, OptimizerSettings
from geoseg_gan.losses.objective import HingeFM
from geoseg_gan.models.registry import build_discriminator, build_generator

GENERATOR = {"name": "unet", "width": 4, "depth": 2, "max_width": 8}
DISCRIMINATOR = {"name": "patch", "width": 4, "layers": 2, "scales": 1}


def samples(count=8, side=32):
    rng = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, side, side), generator=rng, dtype=torch.uint8),
            "label": torch.randint(3, (side, side), generator=rng, dtype=torch.uint8),
        }
        for _ in range(count)
    ]


def build(batch=4, objective=None, **optimizer):
    torch.manual_seed(0)
    return GAN(
        build_generator(GENERATOR, 3, 3),
        build_discriminator(DISCRIMINATOR, 3, 3),
        objective or HingeFM(),
        num_classes=3,
        scaling=ImageScaling([0.0] * 3, [255.0] * 3),
        lr=1e-3,
        optimizer=OptimizerSettings(**optimizer),
        seed=0,
        global_batch=batch,
    )


def fit(module, epochs=1, callbacks=(), **trainer):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, **trainer}
    runner = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    loader = DataLoader(samples(), batch_size=module.global_batch, num_workers=0)
    runner.fit(module, loader)
    return runner


class Spy(HingeFM):
    """Records which gradients exist when each step's terms are computed."""

    def __init__(self, module=None):
        super().__init__()
        self.module = module
        self.seen = []

    def d_terms(self, discriminator, batch, fake):
        assert not fake.requires_grad
        assert all(p.requires_grad for p in discriminator.parameters())
        return super().d_terms(discriminator, batch, fake)

    def g_terms(self, discriminator, batch, fake):
        self.seen.append([p.grad.clone() for p in discriminator.parameters()])
        assert fake.requires_grad
        assert not any(p.requires_grad for p in discriminator.parameters())
        return super().g_terms(discriminator, batch, fake)


def test_the_generator_s_step_leaves_the_discriminator_s_gradients_alone():
    spy = Spy()
    module = build(batch=8, objective=spy)
    fit(module)
    after = [p.grad for p in module.discriminator.parameters()]
    assert any(grad.abs().sum() > 0 for grad in after)
    for before, now in zip(spy.seen[-1], after, strict=True):
        assert torch.equal(before, now)
    assert all(p.requires_grad for p in module.parameters())


def test_the_discriminator_s_step_leaves_the_generator_alone():
    class Stop(HingeFM):
        def g_terms(self, discriminator, batch, fake):
            # Reached after the discriminator's backward and step, before the generator's.
            assert all(p.grad is None for p in module.generator.parameters())
            for name, parameter in module.generator.named_parameters():
                assert torch.equal(parameter, start[name])
            return super().g_terms(discriminator, batch, fake)

    module = build(batch=8, objective=Stop())
    start = {name: p.detach().clone() for name, p in module.generator.named_parameters()}
    fit(module)
    assert any(not torch.equal(p, start[n]) for n, p in module.generator.named_parameters())


def test_one_batch_counts_as_one_step():
    module = build(batch=2)
    runner = fit(module, epochs=3)
    assert runner.global_step == 3 * 4


def test_max_steps_means_batches():
    module = build(batch=2)
    runner = fit(module, epochs=10, max_steps=5)
    assert runner.global_step == 5


class Rates(L.Callback):
    """Records both learning rates, discriminator and generator, after each batch."""

    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, module, *_):
        self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])


def test_learning_rates_fall_linearly_from_the_named_share_on():
    seen = Rates()
    module = build(batch=2, schedule="linear", decay_from=0.5, d_lr_ratio=2.0)
    fit(module, epochs=2, callbacks=[seen])
    # Eight batches; the rate after the k-th is that of progress k/8.
    expected = [1e-3 * min(1, (1 - k / 8) / 0.5) for k in range(1, 9)]
    assert [g for _, g in seen.rates] == pytest.approx(expected)
    assert [d for d, _ in seen.rates] == pytest.approx([2 * rate for rate in expected])


def test_a_used_up_time_budget_counts_as_progress():
    seen = Rates()
    module = build(schedule="linear", decay_from=0.5)
    module.time_used = 0.75
    fit(module, callbacks=[seen])
    # By their count the two batches are at progress 0.5 and 1.
    assert [g for _, g in seen.rates] == pytest.approx([0.5e-3, 0])


def test_a_constant_schedule_stays():
    runner = fit(build(schedule="constant", d_lr_ratio=4.0), epochs=2)
    assert [o.param_groups[0]["lr"] for o in runner.optimizers] == [4e-3, 1e-3]


class StepNorms(L.Callback):
    """Measures every optimiser's gradient norm as its step used it."""

    def __init__(self):
        self.norms = []

    def on_train_start(self, trainer, module):
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.measure)

    def measure(self, optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())


def test_gradients_are_clipped_before_each_step():
    clipped, free = StepNorms(), StepNorms()
    fit(build(clip=0.01), epochs=2, callbacks=[clipped])
    assert len(clipped.norms) == 2 * 2 * 2
    assert max(clipped.norms) <= 0.01 * 1.01
    fit(build(), epochs=2, callbacks=[free])
    assert max(free.norms) > 0.02


def test_under_fp16_it_is_the_unscaled_gradients_that_are_clipped():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    spy = StepNorms()
    module = build(clip=1e-3)
    fit(module, epochs=2, callbacks=[spy], plugins=[plugin])
    assert len(spy.norms) == 2 * 2 * 2
    # Clipping the scaled gradients would leave norms of about 1e-6.
    assert all(0.9e-3 <= norm <= 1.01e-3 for norm in spy.norms)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_bfloat16_autocast_trains_with_float32_weights():
    module = build()
    fit(module, precision="bf16-mixed")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in module.parameters())


def test_noise_of_a_sample_does_not_depend_on_how_a_batch_is_split(monkeypatch):
    module = build(batch=4)
    label = torch.zeros(4, 8, 8, dtype=torch.uint8)
    whole = module._noise(label)
    monkeypatch.setattr(GAN, "global_rank", 1)
    assert torch.equal(module._noise(label[:2]), whole[2:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": [0.5]}, "optimizer.betas"),
        ({"betas": [0.5, 1.0]}, "optimizer.betas"),
        ({"schedule": "lineal"}, "Did you mean 'linear'"),
        ({"decay_from": 1.0}, "optimizer.decay_from"),
        ({"clip": -1.0}, "clip=-1"),
        ({"d_lr_ratio": 0.0}, "d_lr_ratio=0"),
    ],
)
def test_optimizer_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OptimizerSettings(**settings).check()
