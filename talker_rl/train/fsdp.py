"""FSDP2: weights, gradients and optimizer state in parts, one for each process, by torch's own ``fully_shard``.

transformers drives FSDP on accelerators alone (on a CPU it makes plain DDP of it), so it is not asked: the policy is
cut before the trainer sees it, and what is saved is gathered here. Checkpoints hold whole tensors under the names and
numbers that they have without it, so a training may go on in any number of processes, with this engine or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from talker_rl.base.errors import ConfigError
from talker_rl.speech.unwrap import unwrap_talker


def cut(module: nn.Module) -> None:
    """Leave each process its part of the weights; a layer's are gathered while it computes.

    Raises:
        ConfigError: nobody has told this process of the others.
    """
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise ConfigError("fsdp2 is for processes that know of each other, and this one was started alone",
                          where="train.engine.name", fix="start it with torchrun, or with talker-rl train")
    talker = unwrap_talker(module)
    mesh = dist.init_device_mesh(next(talker.parameters()).device.type, (dist.get_world_size(),))
    for layer in talker.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(talker, mesh=mesh)


def is_cut(module: nn.Module) -> bool:
    """Whether its weights lie in parts."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(unwrap_talker(module), FSDPModule)


def gathered(module: nn.Module) -> dict[str, Tensor]:
    """Whole tensors on the CPU of what is saved: an adapter's trained weights, or all; every process asks."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    adapter = hasattr(module, "peft_config")
    return {name: _whole(value).cpu() for name, value in module.state_dict().items() if name in trained or not adapter}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state as one process would have it; every process asks."""
    state = optimizer.state_dict()
    return {**state, "state": {i: {name: _whole(value) for name, value in own.items()}
                               for i, own in state["state"].items()}}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give each process its part of what :func:`optimizer_state` returned."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def placed(parameter: Tensor, value: Any) -> Any:
        if isinstance(parameter, DTensor) and torch.is_tensor(value) and value.shape == parameter.shape:
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return value

    optimizer.load_state_dict({**state, "state": {
        i: {name: placed(parameters[i], value) for name, value in own.items()} for i, own in state["state"].items()}})


def leave_alone(accelerator: Any) -> None:
    """Have accelerate take the policy as it is: it would wrap it in DDP."""
    prepare: Callable[..., Any] = accelerator.prepare_model
    accelerator.prepare_model = lambda model, device_placement=None, evaluation_mode=False: prepare(
        model, device_placement=False, evaluation_mode=True)


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value
