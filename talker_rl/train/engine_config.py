"""Settings of the engine that a training runs on. Imports no library of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from talker_rl.base.settings import Settings

Name = Literal["auto", "ddp", "zero2", "zero3", "fsdp2"]
ZERO = ("zero2", "zero3")
IN_PARTS = ("zero3", "fsdp2")
"""Those that hold the weights in parts."""
LAUNCHED = (*ZERO, "fsdp2")
"""Those that run in processes of their own, even where it is one."""


class EngineConfig(Settings):
    """What holds weights, gradients and optimizer over a training's processes. Any gives what one process gives, but
    for the last digits."""

    name: Name = Field(
        "auto", description="auto, ddp: every process holds all of it. zero2: DeepSpeed, each holds a part of the "
        "optimizer's state and of the gradients. zero3: of the weights too, for full weights that one GPU cannot hold; "
        "both need talker-rl[deepspeed]. fsdp2: torch's own, as zero3; its checkpoints are those of ddp."
    )
    processes: int | None = Field(
        None, ge=1, description="Processes on each machine; null: one for each of the run's `devices`."
    )
    sequence_parallel: int = Field(
        1, ge=1, description="Processes that share each packed row (DeepSpeed-Ulysses): for rows of many thousand "
        "positions, as of long dialogues. It divides the Talker's heads and those of keys (7B: 1, 2, 4; 3B: 1, 2) and "
        "the processes; batches are dealt out to the groups."
    )
    nodes: int = Field(
        1, ge=1, description="Machines that see the run's folder. Above 1 the training is started by "
        "what `talker-rl train --engine-command` prints, on each of them."
    )
