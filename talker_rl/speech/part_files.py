"""A part of a checkpoint, from its files to a module: what does not fit is told by the file that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, ConfigError, told
from talker_rl.base.figures import count
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.files import INDEX, stored_as_floats


@dataclass(frozen=True)
class PartFiles:
    """Where a part's tensors are stored."""

    part: str
    source: Path
    """Folder or file that an error names."""
    shards: Mapping[Path, set[str] | None]
    """File -> names that it holds; None: it has to be asked."""
    stored_name: Callable[[str], str]
    """A parameter's name in the files, from its name in transformers' whole model."""

    def load(self, cls: Any, config: Any, state: Mapping[str, Any], model: ModelConfig, **options: Any) -> Any:
        """transformers' module with these tensors, every one of them in its place.

        Args:
            state: tensors, or slices of files, by their names in the module.
            options: of ``from_pretrained``.

        Raises:
            CheckpointError: there are none, or they do not fit the config.
            ConfigError: a package that it takes is not installed.
        """
        if not state:
            raise CheckpointError(f"no tensor named {self.part}.* is stored", where=str(self.source),
                                  fix="restore the checkpoint")
        try:
            module, info = cls.from_pretrained(
                None, config=config, state_dict=state, ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True, **options,
            )
        except ImportError as error:
            raise _not_installed(self.part, model, error) from error
        except Exception as error:  # a wrong value in the config fails wherever transformers first computes with it
            raise CheckpointError(f"the {self.part}'s weights do not fit its config: {told(error)}",
                                  where=str(self.source), fix="use matching files") from error
        self._check_loaded(module, info)
        return module

    def check_floats(self, dtypes: Mapping[str, str]) -> None:
        """CheckpointError where a tensor is stored in a type that is none of weights."""
        wrong = sorted(name for name, dtype in dtypes.items() if not stored_as_floats(dtype))
        if wrong:
            raise CheckpointError(
                f"{self.file_of(wrong[0]).name}: the {self.part}'s {wrong[0]!r} is stored as {dtypes[wrong[0]]}, which "
                f"is no type of weights ({count(len(wrong), 'such tensor')})",
                where=str(self.source),
                fix="restore the checkpoint; quantized ones cannot be trained",
            )

    def file_of(self, name: str) -> Path:
        """The file in which a tensor of the part is stored or has its place; the index where no file has."""
        stored = self.stored_name(f"{self.part}.{name}")
        return next((file for file, held in self.shards.items() if held is None or stored in held), self.source / INDEX)

    def _check_loaded(self, module: Any, info: dict[str, Any]) -> None:
        parameters = {name for name, _ in module.named_parameters()}
        missing = sorted(set(info.get("missing_keys", ())) & parameters)
        unexpected = sorted(info.get("unexpected_keys", ()))
        mismatched = sorted(str(m[0]) if isinstance(m, tuple) else str(m) for m in info.get("mismatched_keys", ()))
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
            if names:
                raise CheckpointError(
                    f"{self.file_of(names[0]).name} and config.json do not fit: the {self.part} has "
                    f"{count(len(names), 'tensor')} {what}, the first is {names[0]!r}",
                    where=str(self.source),
                    fix="restore the checkpoint; config.json and the weights must be of one model",
                )


def _not_installed(part: str, model: ModelConfig, error: ImportError) -> ConfigError:
    """What to say of a package that transformers asks for."""
    text = str(error).lower()
    if any(word in text for word in ("attn", "attention", "sdpa")):
        return ConfigError(
            f"attention {model.attn_implementation!r} is not there: {told(error)}",
            where="model.attn_implementation",
            fix="install what it needs, or use sdpa",
        )
    return ConfigError(f"a package that the {part} needs is not there: {told(error)}",
                       where="model.thinker_quantization" if part == "thinker" and model.thinker_quantization else None,
                       fix="install it; talker-rl doctor tells versions")
