"""LoRA on the Talker (peft), and the reference that training measures against.

Where the reference is the base, the adapter is switched off. Where it is an adapter, as a rule the one that training
began with, a frozen copy of it is kept beside the one that is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.names import model_name
from talker_rl.speech import adapter_files
from talker_rl.speech.adapter_check import base_kept, check_adapter, check_base_tensors, check_finite, target_problem
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.unwrap import unwrap_talker

__all__ = ["attach_lora", "check_adapter", "load_lora", "merged",
           "reference_logps", "resolve_adapter", "save_lora"]

POLICY, REFERENCE = "default", "reference"
"""Adapter names inside the PeftModel; only the policy's is saved."""


def attach_lora(talker: Any, settings: LoraSettings, *, base_model: str, seed: int = 0) -> Any:
    """Wrap the Talker with a new adapter that changes nothing yet (B is zero). Returns a ``peft.PeftModel``.

    Args:
        talker: the base Talker; its own weights are frozen.
        settings: rank, scale, target modules.
        base_model: what ``adapter_config.json`` names as ``base_model_name_or_path``.
        seed: of A's initialization.

    Raises:
        ConfigError: ``target_modules`` is no regular expression, or names what cannot be trained or is not there.
    """
    from peft import LoraConfig, get_peft_model

    problem = target_problem(unwrap_talker(talker), settings.target_modules)
    if problem:
        raise _refused(problem, talker)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        use_rslora=settings.use_rslora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # float32 adapters under a bf16 base are peft's default; autocast or matching inputs are its business
            with _peft_alone():
                model = get_peft_model(talker, config)
        except ValueError as error:
            raise _refused(str(error).splitlines()[0], talker) from error
    model.peft_config[POLICY].base_model_name_or_path = base_model  # peft would put the module's own name here
    return model


def _refused(problem: str, talker: Any) -> ConfigError:
    names = {n.rsplit(".", 1)[-1] for n, m in unwrap_talker(talker).named_modules() if isinstance(m, torch.nn.Linear)}
    return ConfigError(f"LoRA cannot be attached: {problem}", where="lora.target_modules",
                       fix=f"name some of the Talker's modules: {', '.join(sorted(names))}")


def load_lora(
    talker: Any, folder: Path | str, *, trainable: bool = False, reference: Path | str | None = None
) -> Any:
    """Wrap the Talker with a saved adapter.

    Args:
        trainable: for training on from it.
        reference: adapter of which a frozen copy is kept as the reference; None: the base is the reference.

    Raises:
        CheckpointError: files missing or damaged, weights that are not finite, or an adapter that is not whole or is
            of another geometry.
    """
    from peft import PeftModel

    for adapter in dict.fromkeys(Path(path) for path in (folder, reference) if path is not None):
        check_adapter(talker, adapter)
        check_finite(adapter)
        check_base_tensors(talker, adapter)
    with _peft_alone(), base_kept(talker, Path(folder)):
        model = PeftModel.from_pretrained(talker, str(folder), adapter_name=POLICY, is_trainable=trainable)
    if reference is not None:
        with base_kept(talker, Path(reference)):
            model.load_adapter(str(reference), adapter_name=REFERENCE, is_trainable=False)
        model.set_adapter(POLICY)
    return model


@contextmanager
def _peft_alone() -> Iterator[None]:
    """peft asks for an attribute that transformers has renamed, and every worker would say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def resolve_adapter(spec: str | Path) -> Path:
    """An adapter's folder: the folder itself, or that of the only variant that a run folder trained.

    Raises:
        CheckpointError: there is no adapter, or a run has several.
    """
    folder = Path(spec).expanduser()
    if (folder / "adapter_config.json").is_file():
        return folder
    trained = sorted(file.parent for file in folder.glob("train/*/adapter_config.json"))
    if len(trained) == 1:
        return trained[0]
    if trained:
        raise CheckpointError("This run trained several adapters", where=str(folder),
                              fix=f"name one: {', '.join(map(str, trained))}")
    inside = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    if inside:  # as peft saves one of another name than `default`
        raise CheckpointError("There is no adapter here (adapter_config.json), but inside this folder",
                              where=str(folder), fix=f"name it: {', '.join(map(str, inside))}")
    adapter_files.refuse_other_folders(folder)
    raise CheckpointError("There is no adapter here (adapter_config.json), and no run that has finished one",
                          where=str(folder),
                          fix="give a PEFT folder, or the folder of a finished run: this stage comes after it")


def save_lora(model: Any, folder: Path | str, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the policy's adapter in PEFT's layout: ``peft.PeftModel.from_pretrained(talker, folder)`` loads it.

    It is made to be shared: it names its base, not where that lies here.

    Args:
        state: weights that an engine has gathered; None: the module's own.
    """
    config = model.peft_config[POLICY]
    if config.base_model_name_or_path:
        config.base_model_name_or_path = model_name(config.base_model_name_or_path)
    model.save_pretrained(str(folder), selected_adapters=[POLICY], save_embedding_layers=False,
                          state_dict=None if state is None else dict(state))


@contextmanager
def reference_logps(model: Any) -> Iterator[None]:
    """Inside, the model is the reference: the adapter off, or the frozen copy of the starting adapter on.

    Raises:
        ConfigError: the model has no adapter (full weights are trained): keep a frozen copy of the model instead.
    """
    peft_model = _peft(model)
    if peft_model is None:
        raise ConfigError("the model has no adapter to switch off", fix="use a frozen copy of the model as reference")
    if REFERENCE not in peft_model.peft_config:
        with peft_model.disable_adapter():
            yield
        return
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    peft_model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        peft_model.set_adapter(POLICY)  # peft makes the active adapter trainable: restore exactly what was
        chosen = {id(p) for p in trainable}
        for p in peft_model.parameters():
            p.requires_grad_(id(p) in chosen)


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Inside, the adapter is merged into the weights, in their precision, as an engine that serves merged weights has
    it; then they are what they were to the last bit."""
    kept = [(layer.weight, layer.weight.detach().clone()) for name, layer in model.named_modules()
            if name.endswith(".base_layer")]
    model.merge_adapter()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already unmerged")  # layers that stand in two lists of peft's
            model.unmerge_adapter()
        for weight, before in kept:
            weight.data.copy_(before)


def _peft(model: Any) -> Any | None:
    while model is not None and not hasattr(model, "peft_config"):
        model = getattr(model, "module", None)
    return model
