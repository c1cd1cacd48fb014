import pytest
import torch
from defaults import defaults
from parallel_runs import OASIS_DIS, OASIS_LOSS
from run_folders import assert_same_weights
from small_gan import PATCH, SPADE, UNET, build, fit, samples, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from geoseg_gan.data.transplant import region_map
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import DiffAugmentSettings, DiversitySettings, Weight
from geoseg_gan.training.callbacks.precision import MeasuredPrecision, PrecisionChoice
from geoseg_gan.training.settings import NETWORKS, SpeedSettings

NORMED = {**SPADE, "spectral_norm": True}


def step(module, dtype=None):
    """One step without learning; both networks' gradients."""
    sample = default_collate(samples(4))
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        module.backward_only(sample)
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("generator", "discriminator", "recipe", "speed"),
    [
        (UNET, PATCH, {}, {"recompute": NETWORKS}),
        (NORMED, PATCH, {}, {"recompute": ["generator"]}),
        (NORMED, OASIS_DIS, OASIS_LOSS, {"recompute": NETWORKS}),
        (NORMED, OASIS_DIS, OASIS_LOSS, {"channels_last": False}),
    ],
    ids=["unet", "spade", "oasis", "oasis_layout"],
)
def test_no_switch_changes_gradients_or_what_is_remembered(generator, discriminator, recipe, speed):
    def run(chosen):
        objective = Objective(settings(**recipe), bands=3, seed=0)
        module = build(4, objective, generator, discriminator, speed=chosen)
        return module, step(module)

    (plain, expected), (module, found) = run(None), run(defaults(SpeedSettings, **speed))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    buffers = dict(plain.named_buffers())
    assert any("running" in name for name in buffers) == (generator is NORMED)
    for name, value in module.named_buffers():
        torch.testing.assert_close(value, buffers[name])


def test_a_recomputed_network_keeps_less_from_its_forward_pass():
    def kept(speed):
        module = build(4, generator={**UNET, "depth": 4}, speed=speed)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            sample = default_collate(samples(4))
            (part,) = module._micro_batches(sample, range(4))
            module.generator(part.batch.one_hot, part.noise)
        return sum(sizes)

    assert kept(defaults(SpeedSettings, recompute=["generator"])) < 0.6 * kept(None)


@pytest.mark.slow
def test_compiling_leaves_the_keys_of_a_state_alone():
    plain = build().state_dict()
    module = build(speed=defaults(SpeedSettings, compile=list(NETWORKS)))
    assert list(module.state_dict()) == list(plain)
    assert all(getattr(module, name)._compiled_call_impl is not None for name in NETWORKS)
    assert module.average._compiled_call_impl is None


# Of torch, when Dynamo looks at the gradient of an image that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
def test_compiled_networks_learn_what_plain_ones_do():
    expected = step(build())
    found = step(build(speed=defaults(SpeedSettings, compile=list(NETWORKS))))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


class Waits(TorchDispatchMode):
    """Counts the calls for which a GPU would have to finish all that it was asked."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("generator", "discriminator", "recipe"),
    [
        (UNET, PATCH, {"diversity": defaults(DiversitySettings, 1.0)}),
        (NORMED, PATCH, {"augment": defaults(DiffAugmentSettings, p=0.8)}),
        (NORMED, OASIS_DIS, OASIS_LOSS),
    ],
    ids=["unet", "augmented", "oasis"],
)
def test_no_step_makes_the_host_wait_for_the_device(generator, discriminator, recipe):
    recipe = {"feature_matching": Weight(1.0), **recipe}
    module = build(4, Objective(settings(**recipe), 3, 0), generator, discriminator)
    sample = default_collate(samples(4))
    maps = [torch.from_numpy(region_map(label)) for label in sample["label"].numpy()]
    sample["regions"] = torch.stack(maps)
    with Waits() as waits:
        module.backward_only(sample)
        assert waits.found == []
        sample["label"].max().item()  # the count can be other than zero
    assert waits.found == ["_local_scalar_dense"]


@pytest.mark.parametrize(("gain", "chosen"), [(1.5, "bf16-mixed"), (1.05, "32-true")])
def test_the_faster_precision_is_chosen_and_nothing_else_happens(gain, chosen, monkeypatch):
    module, plain = build(), build()
    monkeypatch.setattr("geoseg_gan.training.callbacks.precision._speed_up", lambda *_: gain)
    plugin = MeasuredPrecision("cpu")
    fit(module, callbacks=[PrecisionChoice()], plugins=[plugin])
    assert plugin.chosen == chosen
    fit(plain, precision=chosen)
    assert_same_weights(plain.state_dict(), module.state_dict())


@pytest.mark.parametrize("recompute", [[], ["generator"]])
def test_measuring_leaves_no_trace(recompute):
    speed = defaults(SpeedSettings, recompute=recompute)
    module, plain = (build(generator=NORMED, speed=speed) for _ in range(2))
    fit(module, callbacks=[PrecisionChoice()], plugins=[plugin := MeasuredPrecision("cpu")])
    fit(plain, precision=plugin.chosen)
    assert_same_weights(plain.state_dict(), module.state_dict())
    assert module.objective.get_extra_state() == plain.objective.get_extra_state()


def test_a_resumed_run_goes_on_in_the_precision_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg_gan.training.callbacks.precision._speed_up", lambda *_: 2.0)
    first = fit(build(), callbacks=[PrecisionChoice()], plugins=[MeasuredPrecision("cpu")])
    first.save_checkpoint(tmp_path / "last.ckpt")
    monkeypatch.setattr("geoseg_gan.training.callbacks.precision._speed_up", lambda *_: 1 / 0)
    plugin = MeasuredPrecision("cpu")
    fit(build(), 2, [PrecisionChoice()], str(tmp_path / "last.ckpt"), plugins=[plugin])
    assert plugin.chosen == "bf16-mixed"
