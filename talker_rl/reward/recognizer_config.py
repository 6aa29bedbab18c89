"""Settings of recognizers: one for all utterances, or one per language. Imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, model_validator

from talker_rl.base.errors import ConfigError
from talker_rl.base.names import model_name
from talker_rl.base.settings import Settings
from talker_rl.base.text.tokens import LANGUAGES
from talker_rl.reward.asr.names import KNOWN, same_model

Lang = Literal["zh", "en", "mixed"]


class RecognizerSettings(Settings):
    """One recognizer, and what it refuses to listen to."""

    type: str = Field(
        default="funasr", description="`funasr`, `whisper`, or the import path `module:factory` of one's own; a known "
        "name, or a folder called so, says it by itself."
    )
    path: str = Field(
        default="micro:reward",
        description="Model folder, or a name: paraformer-zh, SenseVoiceSmall, whisper-large-v3 (looked for in "
        "$TALKER_RL_MODELS, ./models and the hub's cache, then downloaded); `micro:reward` and `micro:eval` are the "
        "shipped micro recognizers.",
    )
    device: str = Field(default="cpu", description="torch device of the recognizer.")
    threads: int = Field(
        default=1, ge=1, description="CPU threads while the recognizer works; the caller's count is restored."
    )
    batch_size: int = Field(
        default=1,
        ge=1,
        description="Utterances per forward. Above 1 they are padded together, which moves floats by about 1e-6 and "
        "may flip a token: then a result can depend on its neighbors.",
    )
    min_seconds: float = Field(
        default=0.1, gt=0.0, description="Shorter audio is refused as `too_short` (FunASR crashes on it)."
    )
    silence_dbfs: float = Field(
        default=-60.0, description="Audio whose loudest 20 ms stay below this level is refused as `silent`."
    )
    trim_silence: bool = Field(
        default=True,
        description="Cut leading and trailing parts below silence_dbfs before recognition; times are shifted back.",
    )
    trim_keep_seconds: float = Field(default=0.1, ge=0.0, description="Silence that trimming leaves at each end.")

    @model_validator(mode="after")
    def _named(self) -> RecognizerSettings:
        known = KNOWN.get(PurePath(self.path).name)  # a folder of a known name holds that model
        if known is None:
            return self
        if known.type == "aligner":
            raise ValueError(f"{self.path} aligns a given text, it recognizes none: name it in reward.pauses.aligner")
        if "type" not in self.model_fields_set:
            self.__dict__["type"] = known.type  # (frozen from here on)
        if self.path in KNOWN and self.type != known.type and ":" not in self.type:
            raise ValueError(f"{self.path} is of type {known.type}, not {self.type}: leave type out")
        return self

    def identity(self, *, path: bool = True) -> dict[str, Any]:
        """What results depend on besides files, as plain data: all but the device, and the path where it is said."""
        return self.model_dump(mode="json", exclude={"device", "by_lang"} | (set() if path else {"path"}))


class RecognizerConfig(RecognizerSettings):
    """Which recognizer listens: one, or one per language.

    ``{path: SenseVoiceSmall}`` hears everything. ``{zh: {path: paraformer-zh}, en: {path: whisper-large-v3}}`` sends
    each utterance to its language's; settings beside the languages hold for all of them, and a ``path`` beside them is
    for the languages that are not named (without one, their utterances are refused). Models load when first needed.

    >>> RecognizerConfig(path="models/paraformer-zh")
    """

    by_lang: dict[Lang, RecognizerSettings] = Field(
        default_factory=dict, description="A recognizer for each of zh, en, mixed; they may stand here without by_lang."
    )

    @model_validator(mode="before")
    @classmethod
    def _languages(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {**(data.get("by_lang") or {}), **{lang: data[lang] for lang in LANGUAGES if lang in data}}
        shared = {k: v for k, v in data.items() if k not in ("by_lang", "type", "path", *LANGUAGES)}
        if not given:
            return {k: v for k, v in data.items() if k != "by_lang"}
        routes = {lang: {**shared, **route} if isinstance(route, dict) else route for lang, route in given.items()}
        own = {k: data[k] for k in ("type", "path") if k in data}
        return {"path": "", **own, **shared, "by_lang": routes}

    def for_lang(self, lang: str) -> RecognizerSettings:
        """The settings of the recognizer that hears this language.

        Raises:
            ConfigError: recognizers are given by language, and none for this one.
        """
        found = self._of(lang)
        if not found.path:
            raise ConfigError(
                f"No recognizer hears {lang!r}: there are {', '.join(self.by_lang)}",
                where="reward.recognizer or reward.evaluator",
                fix=f"add `{lang}: {{path: ...}}` beside them, or a `path` for all other languages",
            )
        if found is self and self.by_lang:
            return RecognizerSettings.model_validate(self.model_dump(exclude={"by_lang"}))
        return found

    def _of(self, lang: str) -> RecognizerSettings:
        routes: Mapping[Any, RecognizerSettings] = self.by_lang
        return routes.get(lang, self)

    def identity(self, *, path: bool = True) -> dict[str, Any]:
        own = super().identity(path=path)
        routes = {lang: route.identity(path=path) for lang, route in sorted(self.by_lang.items())}
        return {**own, "by_lang": routes} if routes else own

    def on_device(self, device: str) -> RecognizerConfig:
        """A copy on another device, every language's recognizer."""
        routes = {lang: route.model_copy(update={"device": device}) for lang, route in self.by_lang.items()}
        return self.model_copy(update={"device": device, "by_lang": routes})

    @property
    def routes(self) -> list[RecognizerSettings]:
        """The recognizers that there are: those of languages, and the one for all others where it has a path."""
        return [*self.by_lang.values(), *([self] if self.path else [])]

    @property
    def label(self) -> str:
        """Names for people: ``paraformer-zh``, or ``zh: paraformer-zh, en: whisper-large-v3``."""
        routes = [f"{lang}: {route.path}" for lang, route in self.by_lang.items()]
        return ", ".join([*routes, *([f"else: {self.path}"] if self.path else [])]) if routes else self.path


_EVALUATORS = {"zh": ("paraformer-zh", "SenseVoiceSmall"), "en": ("whisper-large-v3", "SenseVoiceSmall")}
"""seed-tts-eval's recognizer of each language, and another where that one rewards."""


def default_evaluator(recognizer: RecognizerConfig) -> RecognizerConfig:
    """Another recognizer than the one that rewards: the other micro one, or seed-tts-eval's.

    A text in both languages has no recognizer there: name one under ``mixed`` where prompts are mixed.
    """
    if recognizer.path.startswith("micro:"):
        return RecognizerConfig(path="micro:reward" if recognizer.path == "micro:eval" else "micro:eval")
    routes = {}
    for lang, (first, second) in _EVALUATORS.items():
        rewarding = recognizer._of(lang)
        routes[lang] = {"path": second if same_model(first, rewarding.path) else first, "device": rewarding.device}
    return RecognizerConfig.model_validate(routes)


def shared_languages(recognizer: RecognizerConfig, evaluator: RecognizerConfig) -> list[str]:
    """Languages that the same model judges in training and in evaluation: their figures may flatter."""
    found = []
    for lang in LANGUAGES:
        one, other = recognizer._of(lang), evaluator._of(lang)
        if one.path and one.type == other.type and same_model(one.path, other.path):
            found.append(lang)
    return found


def recognizer_name(recognizer: RecognizerConfig) -> str:
    """A recognizer's label, with names in the place of folders."""
    def named(settings: Any) -> dict[str, str]:
        return {"path": model_name(settings.path) if settings.path else ""}

    routes = {lang: route.model_copy(update=named(route)) for lang, route in recognizer.by_lang.items()}
    return recognizer.model_copy(update={**named(recognizer), "by_lang": routes}).label
