"""What the process of a test of killed runs does: `python killed.py FOLDER COHORT`.

It pre-trains the experiment that lies in the folder once for each of `MOMENTS`, in a child that is
killed at that moment.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from cohort.cohort import Cohort
from training.config import Config
from training.trainer import Trainer, pretrain

# By name: the step after which a run is killed, or how many folders and files it has made, moved or
# removed by then while it writes its second checkpoint.
MOMENTS = {"step": 5, "third move": 3, "fourth move": 4, "fifth move": 5, "seventh move": 7}
MOVES = ("os.mkdir", "os.rename", "shutil.rmtree", "os.remove", "os.rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_within_second_checkpoint(moves: int) -> None:
    save, saves, writing, left = Trainer.save_state, 0, False, moves

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if writing and saves == 2 and event in MOVES:
            left -= 1
            if not left:
                die()

    def counted(self: Trainer) -> None:
        nonlocal saves, writing
        saves, writing = saves + 1, True
        save(self)
        writing = False

    Trainer.save_state = counted  # type: ignore[method-assign]  # on purpose
    sys.addaudithook(watch)


def train_and_die(config: Config, cohort: Cohort, out: Path, moment: str) -> None:
    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        if moment == "step" and step == MOMENTS[moment]:
            die()

    if moment != "step":
        die_within_second_checkpoint(MOMENTS[moment])
    pretrain(cohort, config, out, report=report)


def main() -> None:
    folder, cohort = Path(sys.argv[1]), Cohort.open(Path(sys.argv[2]))
    config = Config.model_validate_json((folder / "killed.json").read_text())
    torch.set_num_threads(1)
    ended = {}
    for moment in MOMENTS:
        # torch is there already, and has computed nothing that a child could not go on from.
        child = os.fork()
        if not child:
            train_and_die(config, cohort, folder / moment, moment)
            os._exit(0)
        ended[moment] = os.WTERMSIG(os.waitpid(child, 0)[1])
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
