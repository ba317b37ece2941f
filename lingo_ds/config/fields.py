"""The strict base model of every section of the config, and the types of single settings."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from lingo_ds.config.yaml import dump_yaml


def rule_error(rule: str, fix: str, **context: Any) -> PydanticCustomError:
    """A validation error with rule and fix; give `field` and `value` where pydantic does not know them."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "fix": fix, **context})


def _whole_from_one_on(value: int | float) -> int | float:
    if value >= 1 and value != int(value):
        raise rule_error("is neither below 1 nor a whole number", "write whole steps, or a fraction below 1")
    return value


MAX_COUNT = 2**31 - 1
"""Largest value of any count: no run is longer, and floats would no longer count exactly."""

Duration = Annotated[int | float, Field(ge=0, le=MAX_COUNT), AfterValidator(_whole_from_one_on)]
"""A number of steps (whole, 1 or more) or a fraction of the run (below 1)."""

PositiveInt = Annotated[int, Field(ge=1, le=MAX_COUNT)]
"""A count of at least 1."""

Epochs = Annotated[float, Field(gt=0, le=1e6)]
"""A number of passes over the training split; it need not be whole."""

BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A share or probability from 0 to below 1."""


def as_name(value: Any) -> Any:
    """A number as the text that names something, as it was written; any other value as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    spelled = str(getattr(value, "spelled", value))
    return spelled if math.isfinite(value) or spelled[:1].isdigit() else value


Name = Annotated[str, BeforeValidator(as_name)]
"""A name; YAML takes one like 2, e.g. of a chromosome, for a number."""


def is_pattern(name: str) -> bool:
    """Whether a name stands for any that is like it, as `osa_*` does."""
    return any(character in name for character in "*?[")


PathText = Annotated[str, BeforeValidator(as_name), AfterValidator(os.path.expanduser)]
"""A path, or a name that stands for one; ~ is the user's home."""

UserPath = Annotated[
    Path, BeforeValidator(as_name), AfterValidator(lambda path: Path(os.path.expanduser(path)))
]
"""A path; ~ is the user's home."""


def resolve_duration(value: Duration, *, total: int) -> int:
    """Steps of a `Duration` in a run of `total` steps; a fraction is rounded to the nearest step."""
    return round(value * total) if value < 1 else int(value)


class Section(BaseModel):
    """A part of the config: unknown keys are refused, and values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def to_yaml(self) -> str:
        """The resolved config as YAML, defaults included."""
        return dump_yaml(self.model_dump(mode="json"))

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = info.field_name
        assert field is not None  # pydantic names the field to every field validator
        if isinstance(value, bool) and cls.model_fields[field].annotation is not bool:
            raise rule_error("must not be true or false", "write a number, a name or null")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_half_characters(cls, value: Any) -> Any:
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise rule_error("holds half of a character (a surrogate)", "write it as UTF-8")
        return value
