"""The commands as programs, which `scripts/` and the installed `geoseg-...` start."""

from collections.abc import Callable
from pkgutil import resolve_name

from geoseg_gan.utils.signals import ending_at_once


def _program(folder: str, name: str) -> Callable[[], None]:
    """A command whose modules are imported when it runs: Ctrl-C meanwhile ends in one line."""

    def main() -> None:
        with ending_at_once():
            resolve_name(f"geoseg_gan.{folder}.settings:{name}_command")()

    return main


check_data = _program("data", "check_data")
compare = _program("training", "compare")
evaluate = _program("evaluation", "evaluate")
export = _program("export", "export")
generate = _program("synthesis", "generate")
pack = _program("data", "pack")
predict = _program("evaluation", "predict")
prepare = _program("data", "prepare")
studio = _program("studio", "studio")
tile = _program("data", "tile")
train = _program("training", "train")
train_segmenter = _program("training", "train_segmenter")
trial = _program("trials", "trial")
