"""Generation scored by segmenters from files, and settings that cannot work together."""

import json

import numpy as np
import pytest
import torch
from synthesis_helpers import facts, files, refused
from torch.nn import functional as F

from geoseg_gan.data.images import read_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.synthetic import read_manifest
from geoseg_gan.synthesis import generate as command_module
from geoseg_gan.synthesis.generate import check


def test_an_onnx_model_scores_with_losses_measured_once(
    run_generate, generator, root, save_onnx, palette, monkeypatch
):
    gen_ckpt, model = generator(root), save_onnx(np.eye(3))
    asked = {"segmenter_ckpt": str(model), "tau": 0.0, "alpha": 1.25, "num_samples": 4}
    folder = run_generate(gen_ckpt, "first", **asked)
    assert any(line["kept"] for line in read_manifest(folder))
    assert len(facts(folder)["segmenter"]["sha256"]) == 64
    # With mean and std 0.5 the logits are the image in [-1, 1].
    losses, labels = [], []
    for pair in find_pairs(root, "train"):
        logits = torch.from_numpy(read_image(pair.image) / 127.5 - 1).view(-1, 3)
        labels.append(torch.from_numpy(MaskReader(palette).read(pair.mask)[0]).view(-1).long())
        losses.append(F.cross_entropy(logits, labels[-1], ignore_index=255, reduction="none"))
    all_losses, all_labels = torch.cat(losses), torch.cat(labels)
    expected = [float(all_losses[all_labels == c].mean()) for c in range(3)]
    assert facts(folder)["class_losses"] == pytest.approx(expected, abs=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(command_module, "measure_class_losses", None)
        run_generate(gen_ckpt, "first", **(asked | {"num_samples": 6}))
    content = facts(folder)
    del content["class_losses"]  # which earlier versions kept elsewhere
    (folder / "generation.json").write_text(json.dumps(content))
    run_generate(gen_ckpt, "first", **(asked | {"num_samples": 8}))
    whole = run_generate(gen_ckpt, "second", **(asked | {"num_samples": 8}))
    assert files(folder, "pair_*") == files(whole, "pair_*") and facts(folder) == facts(whole)
    with refused(r"tau=auto compares .* knows none"):
        run_generate(gen_ckpt, "third", **(asked | {"tau": "auto"}))


def test_an_own_segmenter_scores_and_its_facts_are_recorded(
    run_generate, root, generator, segmenter
):
    gen_ckpt = generator(root, gsd=0.5)
    ckpt = segmenter()
    folder = run_generate(gen_ckpt, "out", segmenter_ckpt=str(ckpt), tau=0.05, num_samples=3)
    content = facts(folder)
    assert (content["gsd"], content["mask_format"], content["tau"]) == (0.5, "rgb", 0.05)
    assert len(content["segmenter"]["sha256"]) == 64
    assert content["config"]["sampling"] == "uniform" and content["image_size"] == 32
    ckpt.write_bytes(ckpt.read_bytes() + b"\0")
    with refused(r"segmenter\.sha256 was"):
        run_generate(gen_ckpt, "out", segmenter_ckpt=str(ckpt), tau=0.05, num_samples=5)


def test_a_segmenter_that_does_not_fit_is_refused_before_anything_is_written(
    run_generate, root, generator, save_onnx, tmp_path
):
    gen_ckpt, asked = generator(root), {"segmenter_ckpt": str(save_onnx(np.ones((4, 3))))}
    with refused(r"tells 4 classes apart, but .* palette has 3"):
        run_generate(gen_ckpt, "out", **asked, num_samples=2)
    assert not (tmp_path / "out").exists()
    mapped = run_generate(gen_ckpt, "out", **asked, num_samples=2, class_map=[3, 0, 1])
    assert len(read_manifest(mapped)) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_samples=0"], "num_samples=0: use 1 or more"),
        (["num_workers=-1"], "num_workers=-1"),
        (["layout=folder"], "Did you mean 'folders'"),
        (["keep=3"], "keep=3 needs a segmenter to score by: set segmenter_ckpt"),
        (["alpha=1.25"], "alpha=1.25 needs a segmenter"),
        (["class_map=[0,1]"], r"class_map=\[0, 1\] needs a segmenter"),
        (["tau=auto"], "tau=auto needs a segmenter"),
        (["sampling=balance"], "sampling=balance is not one of .* mean 'balanced'"),
        (["tau=1"], "tau=1: use a number from 0 to below 1, or auto"),
        (["tau=best"], "tau=best: use"),
        (["tau=null"], "tau=None: use"),
        (["tau=true"], "tau=True: use"),
        (["tau=nan"], "tau=nan: use"),
        (["segmenter_ckpt=s.pt", "alpha=0"], "alpha=0.0: use more than 0"),
        (["segmenter_ckpt=s.pt", "alpha=nan"], "alpha=nan: use a finite number"),
        (["segmenter_ckpt=s.pt", "keep=0"], "keep=0: use 1 or more"),
        (["segmenter_ckpt=s.onnx", "onnx.std=[0]"], r"onnx.std=\[0"),
        (["segmenter_ckpt=s.onnx", "onnx.std=[]"], r"onnx.std=\[\]"),
        (["segmenter_ckpt=s.onnx", "onnx.std=[nan]"], r"onnx.std=nan"),
        (["jitter.transplant.p=2"], "jitter.transplant.p=2"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(composed, overrides, message):
    with refused(message):
        check(composed("generate", "gen_ckpt=G.pt", *overrides))


def test_classes_are_given_by_name_and_id_on_the_command_line(composed):
    config = composed("generate", "gen_ckpt=G.pt", "require_classes=[Settlement,3]")
    assert config.require_classes == ["Settlement", 3]
