"""The base of all settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of configuration classes: unknown keys are mistakes, and what is read stays as it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
