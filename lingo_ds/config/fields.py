"""What every section of the config is made of: strict models, and the types of single settings."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lingo_ds.config import yaml as yaml12


def rule_error(rule: str, fix: str, **context: Any) -> PydanticCustomError:
    """A validation failure with rule and fix; `field` and `value` where pydantic does not know them."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "fix": fix, **context})


def _whole_from_one_on(value: int | float) -> int | float:
    if value >= 1 and value != int(value):
        raise rule_error("is neither below 1 nor a whole number", "write whole steps, or a fraction below 1")
    return value


MAX_COUNT = 2**31 - 1
"""Of any count: beyond it lies no run, and arithmetic with floats goes wrong."""

Duration = Annotated[int | float, Field(ge=0, le=MAX_COUNT), AfterValidator(_whole_from_one_on)]
"""A number of steps (whole, 1 or more) or a fraction of the run (below 1)."""

PositiveInt = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Epochs = Annotated[float, Field(gt=0, le=1e6)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def resolve_duration(value: Duration, *, total: int) -> int:
    """Steps that a `Duration` stands for in a run of `total` steps; a fraction goes to the nearest step."""
    return round(value * total) if value < 1 else int(value)


class Section(BaseModel):
    """A part of the config: unknown keys are refused, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def to_yaml(self) -> str:
        """The resolved config as YAML, defaults included."""
        return yaml12.dump(self.model_dump(mode="json"))

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
