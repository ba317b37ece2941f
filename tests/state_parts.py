"""Values that lie in no tensor, as parts of a run's state that are audited."""

from typing import Any, NamedTuple


class Value(NamedTuple):
    """One of these values, as a part of the state."""

    values: dict[str, Any]
    name: str

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.values[self.name]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values[self.name] = state["value"]


def parts_of(values: dict[str, Any]) -> dict[str, Value]:
    return {name: Value(values, name) for name in values}
