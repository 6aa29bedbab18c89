"""What comes into a stage's key by its content: the model, the adapter that the run begins with, the scorer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from talker_rl.base.ids import Fingerprint, derive_seed, stable_hash
from talker_rl.config import RunConfig
from talker_rl.records.prompt import Prompt
from talker_rl.reward.config import RecognizerConfig

SPEAKING = ("talker", "decoder")
"""The parts that sample and decode from cached conditioning."""


def model_input(config: RunConfig, *parts: str) -> dict[str, str]:
    """Content hash of the model, as an input of a stage.

    Args:
        parts: what the stage reads of it; by default Talker and decoder. Shards that hold nothing of them are not
            opened: a rollout from cached conditioning needs no Thinker.
    """
    from talker_rl.speech.files import content_hash
    from talker_rl.speech.registry import family_of

    model = config.model
    found = {"model": family_of(model.path).files_identity(model, *(parts or SPEAKING))}
    if model.talker:
        found["model.talker"] = content_hash(talker_path(model.talker))
    if model.speakers:
        found["model.speakers"] = content_hash(Path(model.speakers).expanduser())
    return found


def start_adapter(config: RunConfig) -> Path | None:
    """The adapter that the run begins with (``model.adapter``); None is the base.

    Raises:
        CheckpointError: it is not there, or several are.
    """
    from talker_rl.speech.lora import resolve_adapter

    return resolve_adapter(config.model.adapter) if config.model.adapter else None


def start_input(config: RunConfig) -> dict[str, str]:
    """Content hash of that adapter, as an input of a stage; none where the run begins with the base."""
    from talker_rl.speech.files import content_hash, require_file

    adapter = start_adapter(config)
    if adapter is None:
        return {}
    files = [require_file(adapter, name, "the adapter that the run begins with")
             for name in ("adapter_config.json", "adapter_model.safetensors")]
    hashes = {file.name: content_hash(file) for file in files}
    return {"model.adapter": Fingerprint(stable_hash(list(hashes.values())), {n: h[:12] for n, h in hashes.items()})}


def scorer_input(config: RunConfig, which: str, languages: Iterable[str], *, remote: bool = False) -> str:
    """Fingerprint of the reward with its ``recognizer`` or ``evaluator``, without loading it.

    Args:
        languages: that occur: the others' models need not even be there.
        remote: services score, with models of their own; here, one that is not on the machine comes now, and once.
    """
    from talker_rl.base.versions import scores_version, scoring_rules
    from talker_rl.reward.asr.names import hash_files, obtain, resolve

    reward = config.reward
    recognizer: RecognizerConfig = getattr(reward, which)
    paths = [recognizer.path]
    if recognizer.by_lang:
        paths = [recognizer.for_lang(lang).path for lang in languages]
    if reward.pauses.aligner is not None:
        paths.append(reward.pauses.aligner.path)
    folders = [(resolve if remote else obtain)(path) for path in paths]
    files = [hash_files(folder) if folder.is_dir() else path for path, folder in zip(paths, folders, strict=True)]
    parts = {"settings": reward.settings(), which: recognizer.identity(), **scoring_rules(),
             **{f"files of {path}": found[:12] for path, found in zip(paths, files, strict=True)}}
    return Fingerprint(stable_hash(reward.settings(), recognizer.identity(), scores_version(), *files), parts)


def seeds(config: RunConfig, purpose: str, prompt: Prompt, count: int) -> list[int]:
    """Seeds of a prompt's candidates: they depend on nothing but the run's seed, the purpose and the prompt."""
    return [derive_seed(config.seed, purpose, prompt.prompt_id, k) for k in range(count)]


def talker_path(spec: str) -> Path:
    """A Talker's weights: a path, or ``micro:clean``."""
    if spec == "micro:clean":
        from talker_rl.speech.locate import resolve_model_path

        return resolve_model_path("micro") / "talker_clean"
    return Path(spec).expanduser()
