import lightning as L
import pytest
import torch
from run_folders import assert_same_weights
from small_gan import SPADE, build, fit


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


class History(L.Callback):
    """Keeps generator and average as they were at the start and after each batch."""

    def on_train_start(self, trainer, module):
        self.generators, self.averages = [copied(module.generator)], [copied(module.average)]

    def on_train_batch_end(self, trainer, module, *_):
        self.generators.append(copied(module.generator))
        self.averages.append(copied(module.average))


@pytest.mark.parametrize(("ema", "kept"), [(0.999, (2 / 11, 3 / 12)), (0.2, (2 / 11, 0.2))])
def test_the_average_by_hand_after_one_and_two_batches(ema, kept):
    history, module = History(), build(batch=4, ema=ema)
    runner = fit(module, callbacks=[history])
    learnt = [p for o in runner.optimizers for group in o.param_groups for p in group["params"]]
    assert not {id(p) for p in module.average.parameters()} & {id(p) for p in learnt}
    assert not any(p.requires_grad or p.grad is not None for p in module.average.parameters())
    assert len(history.averages) == 3
    first, _, _ = history.generators
    for name, _ in module.generator.named_parameters():
        expected = first[name]
        for keep, learnt, average in zip(
            kept, history.generators[1:], history.averages[1:], strict=True
        ):
            expected = keep * expected + (1 - keep) * learnt[name]
            torch.testing.assert_close(average[name], expected, atol=1e-6, rtol=1e-5)


def test_buffers_are_copied():
    history, module = History(), build(generator=SPADE)
    fit(module, callbacks=[history])
    buffers = [name for name, _ in module.generator.named_buffers()]
    for kind in ("running_mean", "running_var", "num_batches_tracked", "_u", "_v"):
        assert any(name.endswith(kind) for name in buffers), kind
    for generator, average in zip(history.generators, history.averages, strict=True):
        assert all(torch.equal(average[name], generator[name]) for name in buffers)
    mean = next(name for name in buffers if name.endswith("running_mean"))
    assert not torch.equal(history.averages[0][mean], history.averages[1][mean])


def test_zero_switches_it_off_and_changes_nothing_else():
    with_it, without = build(), build(ema=0.0)
    fit(with_it)
    fit(without)
    assert without.average is None and without.inference_generator is without.generator
    assert not any(name.startswith("average.") for name in without.state_dict())
    assert_same_weights(with_it.generator.state_dict(), without.generator.state_dict())


def test_the_average_generates_in_evaluation_mode():
    module = build(generator=SPADE)
    with module.evaluating() as generator:
        assert generator is module.average and not generator.training
        assert module.generator.training
    assert module.inference_generator.training


def test_a_resumed_average_is_that_of_the_whole_run(tmp_path):
    whole, part, rest = (build(generator=SPADE, schedule="constant") for _ in range(3))
    fit(whole, epochs=2)
    fit(part, epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    fit(rest, epochs=2, resume=tmp_path / "last.ckpt")
    assert_same_weights(rest.state_dict(), whole.state_dict())
    assert rest.objective.state_dict() == whole.objective.state_dict()
