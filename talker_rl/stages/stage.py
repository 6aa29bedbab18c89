"""What a stage says of itself, once, at the end of its own file: what its result depends on, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from talker_rl.base.versions import rules_of

if TYPE_CHECKING:
    from talker_rl.config import RunConfig
    from talker_rl.planning.forecast import Job, Part
    from talker_rl.rounds import Round
    from talker_rl.store.run_dir import RunDir

MODEL = ("model.path", "model.talker", "model.speakers", "model.residual_weight", "model.replay_experts")
"""What comes into a key by the model's content."""
REWARD = ("reward.recognizer", "reward.pauses", "reward.stability", "reward.rate", "reward.weights", "reward.wer_scale",
          "reward.gates", "reward.clip", "reward.components")
"""What comes into a key by the scorer's fingerprint."""
CHANGES_NOTHING = {
    "name": "a run is called so, and its folder where no other is named",
    "executor": "a shard comes out alike wherever it is made",
    "workers": "a shard comes out alike wherever it is made",
    "audio": "which of the decoded speech is kept beside the results",
    "tracking": "figures are sent elsewhere as well",
    "service": "how `talker-rl serve` waits, batches and refuses; scores are those of one by one",
    "devices": "a training over several gives what one gives, but for the last digits",
    "train.engine": "as devices",
    "variants.*.engine": "as devices",
    "model.device": "results of another device differ in the last bits, as those of another machine do",
    "model.thinker_device_map": "as model.device",
    "conditioning.batch_size": "sums differ by 1e-7 with a batch's width; what is stored stays as it was made",
    "reward.batch_size": "utterances that are given to a recognizer at a time; it has a batch size of its own",
    "reward.max_failure_rate": "when a stage stops; the scores that there are stay as they are",
    "reward.recognizer.device": "as model.device",
    "reward.recognizer.by_lang.*.device": "as model.device",
    "reward.evaluator.device": "as model.device",
    "reward.evaluator.by_lang.*.device": "as model.device",
    "reward.pauses.aligner.device": "as model.device",
}
"""Key of the configuration (or what it begins with) -> why no stage's result hangs on it: it may change between two
starts of the same run."""


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    stage: str
    what: str
    decodes: int = 0
    """Utterances that go through token2wav and a recognizer."""


def _by_another(*_: Any) -> None:
    raise NotImplementedError("this stage is made by another one")


@dataclass(frozen=True)
class Stage:
    """A kind of stage. Its entry in :mod:`talker_rl.stages.order` says where it comes in the run, and its verb."""

    folder: str
    """Its word in the names of its folders: ``rollouts``, ``round2/default/rollouts``, or ``round1/train/default``."""
    label: str
    """What a plan calls it."""
    make: Callable[..., Any] = _by_another
    """Make what is missing: ``make(ctx)``, of a round's ``make(ctx, round_)``."""
    each: Literal["run", "round", "variant"] | None = "run"
    """What a whole run has one of: itself; each round; each variant of a round. None: it is no part of it."""
    key: tuple[str, ...] = ()
    """Keys of the configuration that stand in the stage's key under these names."""
    through: tuple[str, ...] = ()
    """Those that come into it otherwise: by the content of an input (a file, a model, the scorer's fingerprint, a stage
    before), or under a name of their own."""
    anew: tuple[str, ...] = ()
    """Those of figures and pages, which are made anew at every start."""
    rules: tuple[str, ...] = ()
    """Rules of the code that its result depends on, beside those of the scorer: ``sampling``, ``decoding``
    (:mod:`talker_rl.base.versions`)."""
    plan: Callable[[RunConfig, dict[str, int], Round], Iterable[Step]] | None = None
    """Lines of the plan, from the sizes of the three sets."""
    work: Callable[[Job, int], Iterable[Part]] | None = None
    """What the forecast counts, of a round (of all its variants); of a stage of the run, once."""

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """The part of the configuration in its key, by dotted key."""
        resolved = config.resolved()
        return {path: pick(resolved, path) for path in self.key}

    def begin(
        self, run: RunDir, config: RunConfig, name: str, inputs: dict[str, str], extra: dict[str, Any] | None = None
    ) -> str:
        """``RunDir.begin`` of a stage of this kind; returns its key.

        Args:
            extra: settings under names of their own.
        """
        return run.begin(name, self.settings(config) | (extra or {}), inputs | rules_of(*self.rules))


def pick(data: Any, dotted: str) -> Any:
    """The value at a dotted path."""
    for key in dotted.split("."):
        data = data[key]
    return data
