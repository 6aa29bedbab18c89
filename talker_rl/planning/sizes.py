"""How many prompts there are, counted before anything is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from talker_rl.base.errors import TalkerRLError
from talker_rl.config import RunConfig, SetLimits
from talker_rl.data.prompt_files import count_rows, parse_source
from talker_rl.data.prompts import read_prompts
from talker_rl.speech.registry import family_of
from talker_rl.train.config import CommonConfig


def count_prompts(config: RunConfig, which: str) -> int | None:
    """Lines of a set within its limit (skips and pieces of long texts not known yet); None where there is no file."""
    limit = getattr(config.prompts.limit, which)
    source = parse_source(getattr(config.prompts, which))
    lines = limit if limit and source.name else count_rows(source)  # with a limit the hub is not asked
    if lines is None:
        return limit
    return min(lines, limit) if limit else lines


def set_sizes(config: RunConfig, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Prompts of the three sets; those of ``given`` are taken from there.

    Raises:
        TalkerRLError: a file that is not there.
    """
    counts = {}
    for name in SetLimits.model_fields:
        found = given[name] if given and name in given else count_prompts(config, name)
        if found is None:
            raise TalkerRLError(f"Cannot count the {name} prompts", fix=f"check prompts.{name}, or set prompts.limit")
        counts[name] = found if name in (given or {}) else found * voices(config, name)
    return counts


def count_texts(config: RunConfig, which: str, prompts: int) -> int:
    """Texts among the prompts of a set, whoever speaks them: intervals are over texts. A local file is read for it."""
    source = parse_source(getattr(config.prompts, which))
    if source.path is not None and source.is_file:
        with contextlib.suppress(TalkerRLError):  # who reads it for more will say what is wrong
            return len({(p.text, p.lang) for p in read_prompts(**config.prompts.reading(which)).prompts})
    return prompts // voices(config, which)


def per_round(config: RunConfig, sizes: Mapping[str, int]) -> int:
    """Train prompts of a round."""
    return min(config.rollouts.prompts_per_round or sizes["train"], sizes["train"])


def voices(config: RunConfig, which: str) -> int:
    """How often each text of a set is spoken: once, or by each of the speakers."""
    cfg = config.prompts
    if cfg.assignment(which) != "all":
        return 1
    if cfg.speakers:
        return len(cfg.speakers)
    try:
        return len(family_of(config.model.path).speakers(config.model))
    except TalkerRLError:  # a forecast needs no checkpoint
        return 2  # as the published ones have


def spread_over(config: RunConfig) -> int:
    """Devices that each training is spread over, at most, on all machines; 0: the configuration names none."""
    return max(processes_of(config, cfg) for cfg in config.variants.values())


def processes_of(config: RunConfig, cfg: CommonConfig) -> int:
    """Of a training, on all machines; 0: the configuration names none."""
    named = config.devices if isinstance(config.devices, int) else len(config.devices or ())
    here = cfg.engine.processes or named
    return max(here, 1) * cfg.engine.nodes if here or cfg.engine.nodes > 1 else 0
