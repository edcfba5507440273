"""What detectron2's training tells the experiment trackers beyond its own TensorBoard writer."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from detection.engines.detectron2.results import detector_of
from detection.engines.overlays import overlays, overlays_due
from training.configured import flat_values
from training.records.trackers import PROJECT


class OverlayHook(HookBase):
    """Puts the pictures of :mod:`detection.engines.overlays` where writers find them.

    The main process alone does."""

    def after_step(self) -> None:
        cfg, model = self.trainer.cfg, self.trainer.model
        if not (self.trainer.test_sets and overlays_due(cfg, self.trainer.iter + 1)):
            return
        dataset = self.trainer.test_sets[0]
        model.eval()
        with self.trainer.endings.interruptible():
            pictures = overlays(cfg, dataset, detector_of(getattr(model, "module", model), dataset))
        model.train()
        for name, picture in pictures.items():
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))


class WandbWriter(EventWriter):
    """Sends what was stored since the last call to Weights & Biases.

    It comes before the TensorBoard writer, which removes the pictures from the storage.
    """

    def __init__(self, cfg: Any) -> None:
        import wandb

        self.picture = wandb.Image
        self.run = wandb.init(project=PROJECT, config=flat_values(cfg))
        self.newest = -1

    def write(self) -> None:
        storage = get_event_storage()
        values: dict[str, Any] = {
            name: value for name, (value, step) in storage.latest().items() if step > self.newest
        }
        for name, picture, _ in storage._vis_data:  # as the TensorBoard writer takes them
            values[name] = self.picture(picture.transpose(1, 2, 0))
        self.newest = storage.iter
        self.run.log(values, step=storage.iter)

    def close(self) -> None:
        self.run.finish()
