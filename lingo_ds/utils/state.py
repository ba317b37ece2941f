"""State of a run's parts: plain JSON values out, strictly checked values in."""

import json
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, Field, ValidationError

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of steps, events or triplets; a float holds it exactly."""


class Stateful(Protocol):
    """A part of a run whose state can be saved, compared between processes, and restored."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else, a missing or an unknown key included; the message names the key.
        """
        ...


class State(BaseModel, extra="forbid", strict=True, frozen=True, allow_inf_nan=False):
    """Base of the states of single parts: no key may be missing or unknown, no type is converted."""

    @classmethod
    def checked(cls, state: object) -> Self:
        """Reads a state that came from JSON.

        Raises:
            ValueError: where it is something else; the message names the key.
        """
        try:
            return cls.model_validate_json(json.dumps(state))
        except ValidationError as error:
            raise ValueError(first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """The first of pydantic's complaints, with the place it is about."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
