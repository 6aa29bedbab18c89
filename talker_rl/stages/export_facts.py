"""What a finished run knows of one of its variants: its weights, and the lines that its model card shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.base.errors import DataError, StageError
from talker_rl.base.places import require_run
from talker_rl.config import RunConfig, load_data
from talker_rl.data.speaker_settings import SETS
from talker_rl.diagnostics.summary import text_lines
from talker_rl.records.prompt import Prompt
from talker_rl.reward.recognizer_config import recognizer_name
from talker_rl.rounds import Round, train_stage
from talker_rl.speech.usage import Usage
from talker_rl.store.run_dir import MANIFEST, read_manifest, stage_json
from talker_rl.store.shards import ShardFolder
from talker_rl.train.card import RunFacts


@dataclass(frozen=True)
class Run:
    """A run folder and the variant that is exported."""

    path: Path
    config: RunConfig
    manifest: dict[str, Any]
    variant: str
    result: dict[str, Any]
    """What training returned, with the step that was chosen on dev."""
    settings: dict[str, Any]
    """``variant.json`` of the training that the chosen step belongs to."""
    round: int
    """The round that the chosen step belongs to."""

    @property
    def weights(self) -> Path:
        """Folder of the chosen policy."""
        return self.path / "train" / self.variant

    @property
    def base_hash(self) -> str | None:
        """Content of the checkpoint that was trained on: its small files and the shards of Talker and token2wav."""
        digest: str | None = self.manifest["stages"][train_stage(self.variant, self.round)]["inputs"].get("model")
        return digest

    @property
    def lineage(self) -> dict[str, Any]:
        """Where the weights come from, as plain data."""
        stages, command = self.manifest["stages"], _command(self.manifest)
        trained = [train_stage(self.variant, index) for index in range(1, self.round + 1)]
        rounds = [read_json(self.path / stage / "variant.json") for stage in trained]
        return {
            "run": self.config.name, "round": self.round, "step": self.result["step"],
            "config_hash": self.manifest["config_hash"], "seed": self.manifest["seed"],
            "training_seed": self.settings["seed"], "model_hash": self.settings["model_hash"],
            "content": {name: entry["content"] for name, entry in stages.items() if "content" in entry},
            "rounds": [{"pairs_hash": r["pairs_hash"], "start_adapter_hash": r["start_adapter_hash"],
                        "reference_hash": r.get("reference_hash", r["start_adapter_hash"])} for r in rounds],
            "parents": {Path(name).name: content for name, content in self.manifest.get("parents", {}).items()},
            "code": command.get("code", {}), "versions": command.get("versions", {}),
            "python": command.get("python"), "device": command.get("device"),
        }


def open_run(path: Path, variant: str | None) -> Run:
    """A run's variant.

    Args:
        variant: None takes the only one, or the one that was best on dev.

    Raises:
        StageError: no such run or variant, or it is not trained yet.
        DataError: a file of the run is missing or damaged.
    """
    require_run(path)
    try:
        run = _open(path, variant)
        _ = run.base_hash, _data_lines(run), run.lineage  # what the card needs is there before anything is written
        return run
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"manifest.json, or a file that it tells of, is not a run's ({type(error).__name__}: {error})",
                        where=str(path / MANIFEST),
                        fix="restore the run's folder, or name the folder of an adapter in the place of --run-dir",
                        ) from error


def _open(path: Path, variant: str | None) -> Run:
    manifest = read_manifest(path)
    config = load_data(manifest["config"], where=str(path / MANIFEST))
    best = path / "eval" / "summary.json"
    if variant is None and len(config.variants) == 1:
        variant = next(iter(config.variants))
    elif variant is None and best.is_file():
        variant = read_json(best)["variant"]
    if variant not in config.variants:
        problem = "Which variant?" if variant is None else f"The run has no variant {variant!r}"
        raise StageError(problem, where=str(path), fix=f"--variant {' | '.join(config.variants)}")
    assert variant is not None
    chosen_file = path / "train" / variant / "chosen.json"
    if not chosen_file.is_file():
        raise StageError(f"Variant {variant} has not finished training", where=str(path / "train" / variant),
                         fix="finish the run: talker-rl run --run-dir " + str(path))
    chosen = read_json(chosen_file)
    trained = path / train_stage(variant, chosen["round"])
    named = chosen | {"name": f"{config.name}-{variant}"}
    return Run(path, config, manifest, variant, read_json(trained / "result.json") | named,
               read_json(trained / "variant.json"), chosen["round"])


def example_text(run: Run) -> str:
    """A text of the eval set, for the card's code."""
    return ShardFolder(run.path / "prompts").read(SETS.index("eval"), Prompt)[0].text


def facts(run: Run, usage: Usage, weights: list[str], lineage: dict[str, Any]) -> RunFacts:
    """What the card says of the run."""
    evaluation = stage_json(run.path, run.manifest, f"eval/{run.variant}", "summary.json")
    diagnostics = stage_json(run.path, run.manifest, f"diagnostics/{run.variant}", "summary.json")
    started = any(entry["inputs"].get("model.adapter") for entry in run.manifest["stages"].values())
    return RunFacts(
        usage=usage, weights=weights,
        evaluation=evaluation,
        before="before this run" if started else "base",
        judge=f"{recognizer_name(run.config.reward.evaluator)}, which rewarded nothing",
        length_bias=text_lines(diagnostics) if diagnostics else (),
        data=_data_lines(run), lineage=_lineage_lines(run, lineage),
    )


def _data_lines(run: Run) -> list[str]:
    stages = run.manifest["stages"]
    prompts = stages["prompts"]
    lines = []
    for name in SETS:
        source = getattr(run.config.prompts, name)
        digest = prompts["inputs"].get(f"prompts.{name}", "unknown")
        lines.append(f"{name} prompts: {prompts['counts'][name]} of `{Path(source).name}` (the file's hash `{digest}`)")
    for index in range(1, run.round + 1):
        round_ = Round(index, None if index == 1 else run.variant)
        for name in ("rollouts", "scores", "pairs"):
            entry = stages.get(round_.stage(name))
            if entry and entry.get("counts"):
                lines.append(f"{round_.stage(name)}: {_counts(entry['counts'])}")
    lines.append(f"rewarded by {recognizer_name(run.config.reward.recognizer)}")
    return lines


def _counts(counts: dict[str, Any]) -> str:
    """``pairs 7, prompts 8, no_pair {no_margin 1}``."""
    return ", ".join(f"{name} {{{_counts(value)}}}" if isinstance(value, dict) else f"{name} {value}"
                     for name, value in counts.items() if value != {})


def _lineage_lines(run: Run, lineage: dict[str, Any]) -> list[str]:
    code, seeds = lineage["code"], f"{lineage['seed']}, of training {lineage['training_seed']}"
    commit = f"commit `{code['commit']}`" if code.get("commit") else "no commit is known"
    changed = f", with uncommitted changes `{code['diff']}`" if code.get("diff") else ""
    lines = [
        f"base: `{lineage['base']}` (content hash `{lineage['base_hash']}`)",
        f"run: `{lineage['run']}`, configuration `{lineage['config_hash']}`, seed {seeds}",
        f"weights: `{lineage['weights_hash']}`",
        f"speakers: {', '.join(lineage['speakers'])}",
    ]
    for index, round_ in enumerate(lineage["rounds"], 1):
        start, reference = round_["start_adapter_hash"], round_["reference_hash"]
        lines.append(f"round {index}: from {_policy(start)}, reference {_policy(reference)}, "
                     f"data `{round_['pairs_hash']}`")
    lines += [f"stages taken over from run `{name}`: {', '.join(found)}" for name, found in lineage["parents"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in lineage["versions"].items())
    return [*lines, f"code: {commit}{changed}; Python {lineage['python']} on {lineage['device']}; {versions}"]


def _policy(digest: str | None) -> str:
    return f"adapter `{digest}`" if digest else "the base"


def _command(manifest: dict[str, Any]) -> dict[str, Any]:
    """The last command that trained; the last one at all where none is known."""
    commands = manifest.get("commands") or [{}]
    trained = [c for c in commands if len(c["argv"]) > 1 and c["argv"][1] in ("run", "train", "sweep")]
    return (trained or commands)[-1]
