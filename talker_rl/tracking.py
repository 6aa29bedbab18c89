"""Metrics to Weights & Biases, where the configuration asks for it; the run folder has them in any case."""

from __future__ import annotations

import importlib.util
from typing import Any

from transformers import TrainerCallback

from talker_rl.config import RunConfig
from talker_rl.errors import ConfigError


class WandbLog(TrainerCallback):
    """Sends what the trainer logs, each key under the name of the training."""

    def __init__(self, config: RunConfig, training: str) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("tracking.wandb is on and wandb is not installed", where="tracking.wandb",
                              fix="pip install 'talker-rl[wandb]', or tracking.wandb=false")
        import wandb

        self._run = wandb.init(project=config.tracking.project, name=f"{config.name}/{training}",
                               config=config.resolved(), reinit="create_new")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self._run.log({k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.finish()


def trackers(config: RunConfig, training: str) -> list[TrainerCallback]:
    """Callbacks of the configured trackers."""
    return [WandbLog(config, training)] if config.tracking.wandb else []
