"""A process of its own that marks and trains in a folder, for tests that kill it or start two."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from tests.support.prune_tiny import SCHEDULE, samples, settings, tiny_llama
from twinrun.prune import targets
from twinrun.prune.marking import mark
from twinrun.prune.scorer import Scorer
from twinrun.prune.targets import Targets
from twinrun.prune.train import Training


def main(folder: Path, pause: float) -> int:
    torch.set_num_threads(1)
    targets.SHARD = 4
    model, data = tiny_llama(), samples(10)
    mark(model, data, SCHEDULE.layers, folder / "targets", on_progress=lambda *_: time.sleep(pause))
    while not (folder / "targets" / targets.INDEX).exists():  # the other process has shards of its own
        time.sleep(0.05)
    stored = Targets(folder / "targets", model)
    run = Training(model, data, Scorer.new(model, SCHEDULE.layers, 4), settings(epochs=4), stored)
    run.run(folder / "train", lambda *_: time.sleep(pause))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), 1.0 if "--slowly" in sys.argv else 0.0))
