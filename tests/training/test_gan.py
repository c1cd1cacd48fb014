import lightning as L
import pytest
import torch
from defaults import defaults
from lightning.pytorch.plugins import MixedPrecision
from small_gan import PROJECTED, build, fit, samples, settings
from torch.utils.data import default_collate

from geoseg_gan.data.batch import make_batch
from geoseg_gan.data.settings import ElasticStep
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import DiffAugmentSettings, DiversitySettings, PenaltySettings
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.settings import OptimizerSettings
from geoseg_gan.utils.errors import UserError


class Spy(Objective):
    """Records which gradients exist when each step's terms are computed."""

    def __init__(self):
        super().__init__(settings(), bands=3, seed=0)
        self.seen = []

    def d_terms(self, discriminator, view, fake):
        assert not fake.requires_grad
        assert all(p.requires_grad for p in discriminator.parameters())
        return super().d_terms(discriminator, view, fake)

    def g_terms(self, discriminator, view, fake, regenerate):
        self.seen.append([p.grad.clone() for p in discriminator.parameters()])
        assert fake.requires_grad
        assert not any(p.requires_grad for p in discriminator.parameters())
        return super().g_terms(discriminator, view, fake, regenerate)


def test_the_generator_s_step_leaves_the_discriminator_s_gradients_alone():
    spy = Spy()
    module = build(batch=8, objective=spy)
    fit(module)
    after = [p.grad for p in module.discriminator.parameters()]
    assert any(grad.abs().sum() > 0 for grad in after)
    for before, now in zip(spy.seen[-1], after, strict=True):
        assert torch.equal(before, now)
    networks = (module.generator, module.discriminator)
    assert all(p.requires_grad for network in networks for p in network.parameters())


def test_the_discriminator_s_step_leaves_the_generator_alone():
    class Stop(Spy):
        def g_terms(self, discriminator, view, fake, regenerate):
            # Reached after the discriminator's backward and step, before the generator's.
            assert all(p.grad is None for p in module.generator.parameters())
            for name, parameter in module.generator.named_parameters():
                assert torch.equal(parameter, start[name])
            return super().g_terms(discriminator, view, fake, regenerate)

    module = build(batch=8, objective=Stop())
    start = {name: p.detach().clone() for name, p in module.generator.named_parameters()}
    fit(module)
    assert any(not torch.equal(p, start[n]) for n, p in module.generator.named_parameters())


def test_one_batch_counts_as_one_step():
    assert fit(build(batch=2), epochs=10, max_steps=5).global_step == 5


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
    # The scaler leaves out steps whose gradients overflow.
    assert 2 * 2 * 2 - 2 <= len(spy.norms) <= 2 * 2 * 2
    # Clipping the scaled gradients would leave norms of about 1e-6.
    assert all(0.9e-3 <= norm <= 1.01e-3 for norm in spy.norms)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_the_numbers_of_samples_do_not_depend_on_how_a_batch_is_split(monkeypatch):
    class Numbers(Spy):
        def d_terms(self, discriminator, view, fake):
            numbers.append(list(view.batch.serials))
            return super().d_terms(discriminator, view, fake)

    numbers: list = []
    module = build(batch=4, objective=Numbers())
    fit(module)
    assert numbers == [[0, 1, 2, 3], [4, 5, 6, 7]]
    module.global_batch, sample = 8, default_collate(samples(4))
    monkeypatch.setattr(GAN, "global_rank", 1)
    monkeypatch.setattr(GAN, "global_step", 5)
    # The second half of the sixth batch of eight.
    monkeypatch.setattr(module, "step", lambda sample, serials, *_: asked.append(serials) or 1 / 0)
    asked: list = []
    with pytest.raises(ZeroDivisionError):
        module.training_step(sample, 0)
    assert asked == [range(44, 48)]


def test_noise_depends_on_seed_number_and_regions_alone():
    module = build()
    sample = default_collate(samples(4))
    noise = module.draw_noise(sample, range(4), seed=3)
    assert noise.shape == (4, 6, 32, 32)
    half = {key: value[2:] for key, value in sample.items()}
    assert torch.equal(module.draw_noise(half, [2, 3], seed=3), noise[2:])
    assert not torch.equal(module.draw_noise(half, [2, 3], seed=4), noise[2:])
    assert not torch.equal(module.draw_noise(half, [2, 4], seed=3)[1], noise[3])


def test_regions_that_come_with_a_sample_are_taken_and_others_are_counted():
    module = build()
    label = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label[..., 4:] = 1
    counted = module.draw_noise({"label": label}, [0], seed=0)
    style, texture, region = counted[0].split([2, 2, 2])
    assert (style == style[:, :1, :1]).all()
    assert (region[:, :, :4] == region[:, :1, :1]).all()
    assert (region[:, :, 4:] != region[:, :1, :1]).all()
    shown = {"label": label, "regions": torch.ones(1, 8, 8, dtype=torch.int32)}
    given = module.draw_noise(shown, [0], seed=0)[0]
    assert (given[4:] == given[4:, :1, :1]).all()
    assert torch.equal(given[:4], counted[0, :4]) and texture.std() > 0.5


def test_the_second_draw_generates_the_same_masks_with_other_noise():
    module = build().eval()
    sample = default_collate(samples(4))
    batch = make_batch(sample, module.scaling, 3, range(4))
    noise = module.draw_noise(sample, batch.serials, module.seed)
    (part,) = module._micro_batches(sample, batch.serials)
    image, distance = module._second_draw(part)()
    assert image.shape == batch.image.shape and image.requires_grad
    assert not torch.allclose(image, module.generator(batch.one_hot, noise), atol=1e-3)
    again, same = module._second_draw(part)()
    assert torch.equal(image, again) and torch.equal(distance, same)
    # Standard normal draws differ by 2 / sqrt(pi) on average.
    assert distance.shape == (4,) and (distance - 1.128).abs().max() < 0.6


@pytest.mark.parametrize(
    ("recipe", "term"),
    [
        ({"diversity": defaults(DiversitySettings, 8.0)}, "g/diversity"),
        ({"r1": defaults(PenaltySettings, 1.0, every=1)}, "d/r1"),
        ({"augment": defaults(DiffAugmentSettings, p=1.0)}, None),
    ],
)
def test_further_terms_are_logged_and_change_the_training(recipe, term):
    with_it = build(objective=Objective(settings(**recipe), bands=3, seed=0))
    without = build()
    logged, plain = (fit(module).callback_metrics for module in (with_it, without))
    assert term is None or (logged[term].isfinite() and term not in plain)
    for name in ("generator", "discriminator"):
        networks = (getattr(module, name).parameters() for module in (with_it, without))
        assert any(not torch.equal(a, b) for a, b in zip(*networks, strict=True))


def test_images_are_generated_of_warped_masks_in_as_many_parts_as_one_likes():
    def shown(p, accumulate):
        warp = ElasticStep(p, 4.0, 16.0)
        module = build(objective=Objective(settings(warp=warp), 3, 0), accumulate=accumulate)
        made, seen = [], []
        module.generator.register_forward_pre_hook(lambda _, args: made.append(args[0]))
        module.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
        sample = default_collate(samples(4))
        module.backward_only(sample)
        true = make_batch(sample, module.scaling, 3).one_hot
        return true, torch.cat(made[:accumulate]), torch.cat(seen[:accumulate]), module

    true, made, beside, module = shown(1.0, 1)
    assert not torch.equal(made, true) and (made.sum(1) == 1).all()
    assert torch.equal(beside, torch.cat([true, made]))  # real ones, then generated ones
    assert all(p.grad is not None for p in module.generator.parameters())
    assert torch.equal(shown(1.0, 2)[1], made)
    assert torch.equal(shown(0.0, 1)[1], true)


def test_a_projected_discriminator_learns_on_features_that_stay_and_are_not_saved(tmp_path):
    module = build(discriminator=PROJECTED)
    network = module.discriminator
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))  # loads the backbone
    frozen = network.backbone._network
    features = {name: value.clone() for name, value in frozen.state_dict().items()}
    start = {name: value.clone() for name, value in network.state_dict().items()}
    runner = fit(module)
    assert network.backbone._network is frozen
    assert all(torch.equal(features[name], v) for name, v in frozen.state_dict().items())
    for name, value in network.state_dict().items():
        if name.startswith("across_"):
            assert torch.equal(start[name], value), name
    assert any(not torch.equal(start[name], value) for name, value in network.named_parameters())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kept = {name for name in stored["state_dict"] if name.startswith("discriminator.")}
    assert kept == {f"discriminator.{name}" for name in start}
    learnt = sum(p.numel() for p in network.parameters())
    moments = stored["optimizer_states"][0]["state"].values()
    assert sum(entry["exp_avg"].numel() for entry in moments) == learnt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": [0.5]}, "optimizer.betas"),
        ({"betas": [0.5, 1.0]}, "optimizer.betas"),
        ({"schedule": "lineal"}, "Did you mean 'linear'"),
        ({"decay_from": 1.0}, "optimizer.decay_from"),
        ({"clip": -1.0}, "clip=-1"),
        ({"ema": 1.0}, "optimizer.ema=1"),
        ({"ema": -0.1}, "optimizer.ema=-0.1"),
        ({"d_lr_ratio": 0.0}, "d_lr_ratio=0"),
    ],
)
def test_optimizer_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        defaults(OptimizerSettings, **settings)
