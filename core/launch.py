"""Which of how many processes this one is, as torchrun has told it; and the command that starts several."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

EVERY_GPU = "gpu"  # torchrun's own word for as many processes as this machine has GPUs


@dataclass(frozen=True)
class Place:
    """One process among those that torchrun started. `local_rank` counts on its own machine."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the one that writes the run folder and speaks to the person."""
        return self.rank == 0

    @property
    def words(self) -> str:
        """For people, who count from 1."""
        return f"process {self.rank + 1} of {self.world}"


def place() -> Place:
    """The place of this process; it is alone where torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def torchrun(processes: str, module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module of ours in several processes of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes,
            "-m", module, *arguments]
