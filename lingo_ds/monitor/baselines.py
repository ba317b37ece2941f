"""`baselines.json`: what models without a language model reach on a run's splits, and the table beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter
from rich.table import Table

from lingo_ds.monitor.report import metric_names, write_report
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import read_json

FILE = "baselines.json"


class ModelResult(BaseModel):
    """What one model reaches on the splits of a run.

    Attributes:
        title: what it is called in tables.
        parameters: number of its learned parameters; None: unknown.
        seconds: that it took, from its first row to its last metric; of a run those of training.
        metrics: by split and name, those of `report.json`; None where undefined.
        rows: that it read, by split; empty: all.
        bases_per_position: how many bases each of its inputs is the mean of.
        chosen: the point of its grid that was chosen on dev.
        made_from: changes with the data and the settings that its numbers follow from.
    """

    title: str
    parameters: int | None
    seconds: float | None
    metrics: dict[str, dict[str, float | None]]
    rows: dict[str, int] = {}
    bases_per_position: int = 1
    chosen: dict[str, float] = {}
    made_from: str = ""

    def metric(self, split: str, name: str) -> float | None:
        """One metric; None where it is undefined or the split was not evaluated."""
        return self.metrics.get(split, {}).get(name)


_FILE_CONTENT = TypeAdapter(dict[str, ModelResult])


def read_baselines(folder: Path) -> dict[str, ModelResult]:
    """The baselines in a run's folder by name, `logistic` or `cnn`; empty where there are none.

    Raises:
        UserError: where the file holds anything else.
    """
    try:
        return _FILE_CONTENT.validate_python(read_json(folder / FILE))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        rule, fix = "does not hold baselines", "remove it, and run lingo-ds baseline again"
        raise UserError(Mistake("output_dir", folder / FILE, rule, fix)) from None


def write_baselines(folder: Path, baselines: Mapping[str, ModelResult]) -> None:
    """Writes the baselines of a run into its folder."""
    write_report(folder / FILE, {name: one.model_dump() for name, one in baselines.items()})


def comparison_table(name: str, kind: str, models: Sequence[ModelResult]) -> Table:
    """One column per model: the main metrics of the kind of task, on test and on dev, size and time."""
    table = Table(title=f"task {name}, test / dev", title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model.title, justify="right")
    for key, words in metric_names(kind).items():
        cells = (f"{_number(one.metric('test', key))} / {_number(one.metric('dev', key))}" for one in models)
        table.add_row(words, *cells)
    table.add_section()
    table.add_row("learned parameters", *(_number(one.parameters, ",") for one in models))
    table.add_row("seconds", *(_number(one.seconds, ",.0f") for one in models))
    return table


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
