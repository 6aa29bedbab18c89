"""The base of all settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of configuration classes: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
