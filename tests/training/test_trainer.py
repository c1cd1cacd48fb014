"""The Lightning Trainer of both training commands."""

from types import SimpleNamespace

from lightning.pytorch.callbacks import RichProgressBar

from geoseg_gan.training.trainer import _Bar


def test_the_progress_bar_counts_epochs_from_1():
    bar = _Bar()
    bar._trainer = SimpleNamespace(max_epochs=5)
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 4)] == [
        "Epoch 1/5",
        "Epoch 5/5",
    ]


def test_the_progress_bar_shows_miou_in_per_cent(monkeypatch):
    shown = {"inner/miou": 0.6333, "v_num": 1}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: shown)
    assert _Bar().get_metrics(None, None) == {"mIoU %": "63.3"}
