"""Train one variant: from records and conditionings to a folder with weights, log and model card."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from talker_rl.base.disk import atomic_write, read_json, write_json
from talker_rl.base.errors import ConfigError, StageError
from talker_rl.base.ids import stable_hash
from talker_rl.base.progress import Pace
from talker_rl.base.seals import LIST, seal, unseal
from talker_rl.data.pairs import PAIRS_HASH, pairs_hash
from talker_rl.losses import build_loss, parse_loss
from talker_rl.losses.config import filled
from talker_rl.records.codec import FIRST
from talker_rl.speech.protocol import Generator, Policy, TalkerSequence, Training
from talker_rl.store.run_dir import config_diff
from talker_rl.train import callbacks as cb
from talker_rl.train import engines, fsdp, processes
from talker_rl.train.arguments import TalkerArguments, build_arguments, check_spread
from talker_rl.train.card import model_card
from talker_rl.train.checkpoints import (
    WEIGHT_FILES,
    is_last,
    list_checkpoints,
    newest_complete,
    promote_checkpoint,
    strip_resume_state,
)
from talker_rl.train.classes import check_classes
from talker_rl.train.config import TrainConfig
from talker_rl.train.drift import SEQUENCES, KLTargets, mean_kl
from talker_rl.train.guards import Guards, LiveMetrics
from talker_rl.train.live import Live
from talker_rl.train.objective import Objective, OnPolicy, PairObjective, PolicyObjective
from talker_rl.train.sources import Record, Source, Stored
from talker_rl.train.trainer import TalkerTrainer

RESULT, SETTINGS, LOG = "result.json", "variant.json", "log.jsonl"
_FIX = "train again: talker-rl run with --force-stage and the name of this folder inside its run"


def train_variant(
    generator: Generator,
    pairs: Sequence[Record],
    conditionings: Mapping[str, Any] | Iterable[Any],
    cfg: TrainConfig,
    output_dir: str | Path,
    *,
    eval_pairs: Sequence[Record] | None = None,
    resume: bool = True,
    start_adapter: str | Path | None = None,
    reference: str | Path | Literal["start", "base"] = "start",
    progress: bool = True,
    reference_cache: str | Path | None = None,
    extra_callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train, and return what happened (also in `output_dir/result.json`).

    The folder then holds the weights (adapter_model.safetensors and adapter_config.json, or model.safetensors),
    README.md, log.jsonl, variant.json (settings), and `checkpoint-<step>/` with the weights of every saved step, of
    which `checkpoints.promote_checkpoint` can make another one the variant's.

    Called in each of several processes of one training (see :mod:`talker_rl.train.launch`), they share every batch,
    the main one writes, and all return the same.

    Args:
        generator: the model; its Talker is left as it was.
        pairs, eval_pairs: to train on, and held out for `select` and early stopping; with `cfg.data` completions.
        conditionings: of every prompt of both, by prompt id or as a list.
        cfg: loss, LoRA and arguments.
        output_dir: the variant's folder; its name is the variant's.
        resume: go on from the newest complete checkpoint, or return the result of a finished training; False starts
            anew.
        start_adapter: adapter that training begins with (a second round, a stage after another).
        reference: `start`: the policy as training begins. `base`: the model without an adapter. Or an adapter's folder.
        progress: short lines on stderr.
        reference_cache: folder of reference log-probs, to be shared between variants; default inside `output_dir`.
        extra_callbacks: further `TrainerCallback`s.

    Returns: {"name", "step", "steps", "selected_by", "train": last logged metrics, "eval": held-out metrics of the
        step that was kept, "data", "reference": cache counts, "checkpoints", "alarm_step", "settings_hash"}.

    Raises:
        ConfigError: settings that do not fit together.
        StageError: no pairs, a conditioning is missing, or the folder holds a training with other settings.
        TrainingError: the loss is not finite.
    """
    output_dir = Path(output_dir)
    args = _arguments(generator, cfg, output_dir, bool(eval_pairs))
    progress = progress and processes.is_main()
    try:
        source = Stored(pairs, eval_pairs or [], conditionings, args.max_length)
    except StageError as error:
        raise StageError(error.what, where=error.where or str(output_dir), fix=error.fix) from None
    reference_adapter = {"start": start_adapter, "base": None}.get(str(reference), reference)
    settings = _settings(generator, cfg, args, start_adapter, reference_adapter) | {
        "pairs_hash": pairs_hash(source.records),
        "eval_pairs_hash": pairs_hash(source.held_out_records) if source.held_out_records else None,
    }

    def prepare(policy: Policy) -> dict[str, int]:
        return source.refer(
            policy,
            reference_cache or output_dir / "reference",
            bf16=bool(args.bf16),
            batch_size=cfg.reference_batch_size,
            on_progress=_reference_line(output_dir.name) if progress else None,
        )

    parsed = parse_loss(cfg.loss)
    check_classes(parsed, [source.records, source.held_out_records])
    loss = build_loss(filled(parsed, code_rate=generator.codec.rate))
    return _train(
        generator, source, PairObjective(loss), cfg, args, output_dir, settings, prepare,
        start_adapter=start_adapter, reference=reference_adapter, resume=resume, progress=progress,
        watching=lambda policy: _kl_targets(cfg, policy, source.some, 
                                             everywhere=cfg.engine.name == "fsdp2" or engines.zero_stage(args) == 3),
        extra_callbacks=extra_callbacks)


def train_online(
    generator: Generator,
    live: Live,
    cfg: TrainConfig,
    output_dir: str | Path,
    *,
    facts: Mapping[str, Any],
    resume: bool = True,
    start_adapter: str | Path | None = None,
    reference: str | Path | Literal["start", "base"] = "start",
    progress: bool = True,
    extra_callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train on what the policy samples itself; otherwise as :func:`train_variant`.

    Args:
        live: samples, judges, and says what each step is worth.
        facts: what else the weights depend on (prompts, scorer): a folder is only continued with the same.
    """
    output_dir = Path(output_dir)
    online = cfg.online
    assert online is not None
    size = int(cfg.args.get("per_device_train_batch_size", 8))
    candidates = online.decodes_per_sampling / online.mini_batches
    live.micro_batches = max(1, math.ceil(candidates / size))
    fixed = {"gradient_accumulation_steps": live.micro_batches, "ignore_data_skip": True, "max_steps": cfg.fixed_steps}
    args = _arguments(generator, cfg.model_copy(update={"args": {"logging_steps": 1, **cfg.args, **fixed}}), output_dir,
                      False)
    reference_adapter = {"start": start_adapter, "base": None}.get(str(reference), reference)
    settings = _settings(generator, cfg, args, start_adapter, reference_adapter) | dict(facts)
    loss = build_loss(filled(parse_loss(cfg.loss), max_completion_length=live.max_new_tokens,
                             code_rate=generator.codec.rate))
    learn = PolicyObjective(loss) if cfg.learned == "samples" else PairObjective(loss)
    objective = OnPolicy(learn, exact=not args.bf16 and generator.settings.dtype == "float32")
    return _train(
        generator, live, objective, cfg, args, output_dir, settings, lambda policy: {},
        start_adapter=start_adapter, reference=reference_adapter, resume=resume,
        progress=progress and processes.is_main(),
        watching=lambda policy: _kl_targets(cfg, policy, live.some, always=cfg.lora is not None),
        extra_callbacks=(LiveMetrics(live), Guards(live), *extra_callbacks))


def _train(
    generator: Generator, source: Source, objective: Objective, cfg: TrainConfig, args: TalkerArguments,
    output_dir: Path, settings: dict[str, Any], prepare: Callable[[Policy], dict[str, int]], *,
    start_adapter: str | Path | None, reference: str | Path | None, resume: bool, progress: bool,
    watching: Callable[[Policy], list[KLTargets]], extra_callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Go on from the newest checkpoint to the end, and say what happened.

    Args:
        prepare: called with the policy as training begins; returns counts for the result.
        watching: what watches the drift of a policy.
    """
    finished = processes.on_main(lambda: _open_folder(output_dir, settings, resume))
    if finished is not None:
        return finished

    training: Training = cfg.lora or "full"
    with generator.policy(start_adapter, reference=reference, train=training, seed=args.seed) as policy:
        policy.module.to(args.device)
        policy.share_rows(cfg.engine.sequence_parallel)
        sequence, policy.sequence = policy.sequence, None
        cache_counts = prepare(policy)  # of the reference, which each process computes a part of, by whole rows
        policy.sequence = sequence
        checkpoint = processes.on_main(lambda: newest_complete(output_dir))
        if cfg.engine.name == "fsdp2":
            if checkpoint is not None:
                policy.load(checkpoint)
            fsdp.cut(policy.module)
        targets = watching(policy)
        alarm = cb.ChosenAlarm(cfg.chosen_drop_alarm or float("inf"), cfg.chosen_drop_stop)
        trainer = TalkerTrainer(
            policy,
            args,
            objective=objective,
            source=source,
            callbacks=_callbacks(cfg, output_dir, alarm, progress, (*targets, *extra_callbacks)),
        )
        for one in targets:
            one.log = trainer.log
            trainer.kept = one.reached
        for unwanted in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(unwanted)
        if checkpoint is not None and progress:
            print(f"{output_dir.name} resumes from {checkpoint.name}", file=sys.stderr, flush=True)
        if checkpoint is not None and is_last(checkpoint):  # killed before there was a result: Trainer would go on
            if cfg.engine.name != "fsdp2":
                policy.load(checkpoint)
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        else:
            if checkpoint is not None:
                engines.check_resume(checkpoint, args)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history, last_step = trainer.state.log_history, trainer.state.global_step
        if processes.is_main():
            unseal(output_dir)
        trainer.save_model(str(output_dir))
        _undo_autocast(trainer, policy.module)

    def finish() -> dict[str, Any]:
        step, selected_by = _select(cfg, output_dir, history, last_step)
        result: dict[str, Any] = {
            "name": output_dir.name,
            "step": step,
            "steps": last_step,
            "selected_by": selected_by,
            "train": cb.without_wall_clock(next((row for row in reversed(history) if "loss" in row), {})),
            "eval": cb.without_wall_clock(
                next((row for row in reversed(history) if "eval_loss" in row and row["step"] == step), {})
            ),
            "data": source.facts(),
            "reference": cache_counts,
            "checkpoints": list(list_checkpoints(output_dir)),
            "alarm_step": cb.first_alarm(history, cfg.chosen_drop_alarm),
            "settings_hash": stable_hash(settings),
        }
        card = model_card(result, settings, adapter=cfg.lora is not None)
        atomic_write(output_dir / "README.md", card)
        seal(output_dir, [name for name in (*WEIGHT_FILES, LOG) if (output_dir / name).is_file()])
        write_json(output_dir / RESULT, result)  # a folder with a result is finished: nothing resumes from it any more
        if not cfg.keep_optimizer:
            strip_resume_state(output_dir)
        return result

    return processes.on_main(finish)


def _arguments(generator: Generator, cfg: TrainConfig, output_dir: Path, has_eval: bool) -> TalkerArguments:
    """Training arguments; held-out pairs are evaluated at every checkpoint unless the config says otherwise."""
    values = dict(cfg.args)
    if has_eval:
        values.setdefault("eval_strategy", "steps")
    elif values.get("eval_strategy", "no") != "no":
        raise ConfigError("there are no held-out pairs to evaluate on", where="train.args.eval_strategy", fix='"no"')
    deepspeed = engines.deepspeed_settings(cfg.engine, values)
    overrides = {"disable_tqdm": True} | engines.overrides(deepspeed, generator.device.type == "cpu")
    if values.get("use_cpu") and generator.device.type != "cpu":
        raise ConfigError("use_cpu with a model on another device", where="train.args.use_cpu", fix="model.device: cpu")
    if values.get("eval_strategy") == "steps" and "eval_steps" not in values:
        values["eval_steps"] = values.get("save_steps", TalkerArguments.save_steps)
    args = build_arguments(values, output_dir, **overrides)
    engines.require(args, deepspeed, int(os.environ.get("WORLD_SIZE", "1")))
    check_spread(args, args.world_size // cfg.engine.sequence_parallel)
    if cfg.select == "best" or cfg.patience:
        together = has_eval and args.eval_strategy == args.save_strategy
        if together and args.eval_strategy == "steps":
            together = args.eval_steps >= 1 and args.save_steps % args.eval_steps == 0
        if not together:
            raise ConfigError(
                "select: best and early stopping need an evaluation on held-out pairs at every checkpoint",
                where="checkpoint.select, checkpoint.early_stopping_patience",
                fix="give held-out pairs, and save_steps a multiple of eval_steps (same strategy for both)",
            )
    return args


def _settings(
    generator: Generator,
    cfg: TrainConfig,
    args: TalkerArguments,
    start_adapter: str | Path | None,
    reference: str | Path | None,
) -> dict[str, Any]:
    """Everything that the trained weights depend on: a folder is only continued with the same. The number of processes
    is none of it: what the configuration says of batches is of all of them together."""
    adapter_hash = _adapter_hash(start_adapter)
    # A reference of its own stands in the settings only where there is one: old folders can be continued.
    other: dict[str, Any] = {} if reference == start_adapter else {
        "reference": str(reference) if reference is not None else "the base", "reference_hash": _adapter_hash(reference)
    }
    family = generator.codec.name.partition("-")[0]
    if family != FIRST:  # likewise
        other["family"] = family
    return other | {
        "config": cfg.content(),
        "seed": args.seed,
        "base_model": str(generator.settings.path),
        "model_hash": generator.identity("talker"),
        "start_adapter": str(start_adapter) if start_adapter is not None else None,
        "start_adapter_hash": adapter_hash,
    }


def _adapter_hash(folder: str | Path | None) -> str | None:
    if folder is None:
        return None
    from talker_rl.speech.files import content_hash, require_file

    return content_hash(require_file(Path(folder), "adapter_model.safetensors", "the adapter's weights"))


def _open_folder(output_dir: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Make the folder ready; the result of a finished training with the same settings, or None.

    Raises:
        StageError: it holds a training with other settings.
    """
    if not resume:
        for path in [*output_dir.glob("checkpoint-*"), output_dir / SETTINGS, output_dir / RESULT, output_dir / LOG,
                     output_dir / LIST]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    settings_file = output_dir / SETTINGS
    if settings_file.is_file():
        before = read_json(settings_file, fix=_FIX)
        # Where an adapter lies does not matter, its content does; and of another version's hash of the pairs nothing
        # can be said, while the run's own manifest knows what they were.
        paths = ["start_adapter", "reference"]
        if not str(before.get("pairs_hash", PAIRS_HASH)).startswith(PAIRS_HASH):
            paths += ["pairs_hash", "eval_pairs_hash"]
        same = {k: v for k, v in settings.items() if k not in paths}
        changed = config_diff({k: v for k, v in before.items() if k not in paths}, same)
        if changed:
            raise StageError(
                "the folder holds a training with other settings:\n    " + "\n    ".join(changed[:10]),
                where=str(output_dir),
                fix="choose another folder, restore the settings, or start anew (resume=False)",
            )
    else:
        write_json(settings_file, settings)
    result_file = output_dir / RESULT
    return read_json(result_file, fix=_FIX) if result_file.is_file() else None


def _callbacks(
    cfg: TrainConfig, output_dir: Path, alarm: cb.ChosenAlarm, progress: bool, extra: Sequence[TrainerCallback]
) -> list[TrainerCallback]:
    first = [one for one in extra if isinstance(one, LiveMetrics)]  # what they add to a log line, all others see
    result: list[TrainerCallback] = [*first, cb.JsonLog(output_dir / LOG), alarm, cb.LastStep()]
    if cfg.patience is not None:
        result.append(cb.EarlyStopping(cfg.select_metric, cfg.patience))
    if progress:
        result.append(cb.ProgressLine(output_dir.name, cfg.online.decodes if cfg.online else None))
    return [*result, *(one for one in extra if one not in first)]


def _kl_targets(
    cfg: TrainConfig, policy: Policy, some: Callable[[int], list[TalkerSequence]], *, always: bool = False,
    everywhere: bool = False,
) -> list[KLTargets]:
    """What watches the drift, where the configuration asks for it."""
    if not (always or cfg.save_at_kl or cfg.stop_at_kl is not None):
        return []
    return [KLTargets(lambda: mean_kl(policy, some(SEQUENCES)), cfg.save_at_kl or [], cfg.stop_at_kl, everywhere)]


def _select(cfg: TrainConfig, output_dir: Path, history: list[dict[str, Any]], last_step: int) -> tuple[int, str]:
    """Put the weights of the step that `select` names into the root; the step and how it was chosen."""
    if cfg.select == "last":
        return last_step, "last step"
    saved = list_checkpoints(output_dir)
    values = {s: v for s, v in cb.evaluations(history, cfg.select_metric).items() if s in saved}
    best = cb.best_step(values, cfg.select_metric)
    if best is None:
        names = sorted({name for row in history for name in row if name.startswith("eval_")})
        raise ConfigError(
            f"no evaluation reported {cfg.select_metric!r} at a checkpoint",
            where="checkpoint.metric_for_best_model",
            fix=f"choose one of {', '.join(names)}" if names else "evaluate at least once (eval_steps)",
        )
    promote_checkpoint(output_dir, best)
    return best, f"best {cfg.select_metric} on held-out pairs: {values[best]:.4f}"


def _reference_line(name: str) -> Any:
    pace = Pace()

    def show(done: int, total: int) -> None:
        if done == total or (done % 256 < 16 and pace.due()):
            print(f"{name} reference log-probs {done}/{total}", file=sys.stderr, flush=True)

    return show


def _undo_autocast(trainer: TalkerTrainer, model: nn.Module) -> None:
    """accelerate replaces `forward` of the model it prepares; the base Talker must not keep that."""
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
