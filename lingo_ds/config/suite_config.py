"""Recipes of many runs: each task with each setting of a grid and each seed, over one backbone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from lingo_ds.config.fields import Name, PositiveInt, Section, UserPath, rule_error
from lingo_ds.config.grid import (
    Grid,
    as_list,
    combinations,
    each_once,
    folder_name,
    label_of,
    with_dotted_grid,
)
from lingo_ds.config.known_tasks import lookup
from lingo_ds.config.recipe import COMMAND_LINE, Recipe, checked, read_recipe
from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import Mistake, UserError

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0, lt=1)]

BaselineName = Literal["logistic", "cnn"]

MAKES_SUITE = {"tasks", "seeds", "grid"}
"""Settings each of which makes a recipe that of a suite."""


class SearchConfig(Section):
    """Which settings of the grid are trained to their end; without a grid there is nothing to choose."""

    method: Literal["all", "halving"] = Field(
        "all",
        description="all: every setting is trained to its end; halving: the losing ones end early "
        "(successive halving, arXiv 1502.07943).",
    )
    keep: Share = Field(
        0.33, description="Share of a task's settings that go on each time, rounded up; those best on dev."
    )
    at: tuple[Share, ...] = Field(
        (0.2, 0.5), description="When settings are compared and dropped, as fractions of a run's steps."
    )

    @field_validator("at")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(one >= other for one, other in itertools.pairwise(value)):
            raise rule_error("is not a list of increasing fractions", "write e.g. [0.2, 0.5]")
        return value

    @model_validator(mode="after")
    def _of_halving(self) -> Self:
        for name in ("keep", "at"):
            if self.method == "all" and name in self.model_fields_set:
                raise rule_error(
                    "has no effect with search.method all",
                    "set search.method=halving, or remove it",
                    field=f"search.{name}",
                    value=getattr(self, name),
                )
        return self


class SuiteConfig(Section):
    """Settings of a suite as a whole, beside those of its runs."""

    name: Annotated[Name, Field(pattern=r"^\w[\w.-]*$")] = Field(
        description="Name of the suite and of its folder."
    )
    output_dir: UserPath | None = Field(
        None, description="Folder that holds one folder per task, setting and seed. null: runs/<name>."
    )
    tasks: tuple[str, ...] | None = Field(
        None, description="Names of known tasks (docs/tasks.md) to train. null: the recipe's own data."
    )
    seeds: tuple[Seed, ...] = Field((0,), description="Seeds with each of which each task is trained.")

    concurrent: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="How many runs advance together in one forward and backward pass. auto: as many as "
        "memory and the plan's token budget allow.",
    )
    placement: Literal["replicated", "groups"] = Field(
        "replicated",
        description="replicated: every process holds the adapter of every run; groups: each shard group of "
        "the backbone trains runs of its own.",
    )
    grid: Grid = Field(
        {},
        description="Values to try of any settings, by dotted names; the best combination on dev is chosen. "
        "{}: none.",
    )
    search: SearchConfig = SearchConfig()
    baselines: tuple[BaselineName, ...] | None = Field(
        None,
        description="Models without a language model to compute for each task (logistic, cnn), as columns of "
        "the table of results. null: none.",
    )

    _lists = field_validator("tasks", "seeds", "baselines", mode="before")(as_list)

    @field_validator("tasks", "seeds", "baselines")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if value is None else each_once(value)

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            try:
                lookup(name)
            except UserError as error:
                (mistake,) = error.mistakes
                raise rule_error(mistake.rule, mistake.fix, value=name) from None
        return value

    @property
    def folder(self) -> Path:
        """Folder of all runs and of the table of results."""
        return self.output_dir or Path("runs") / self.name


ONLY_OF_SUITE = SuiteConfig.model_fields.keys() - RunConfig.model_fields.keys()
"""Settings that a single run does not have."""


class Member(NamedTuple):
    """One run of a suite.

    Attributes:
        task: the task's name in the table.
        seed: its seed.
        config: the config of the run.
        setting: values of the grid's settings by dotted name; empty without a grid.
        label: what the setting is called, e.g. `learning_rate=0.0003,rank=8`; empty without a grid.
    """

    task: str
    seed: int
    config: RunConfig
    setting: dict[str, Any]
    label: str

    @property
    def title(self) -> str:
        """The task and the setting: what runs share that differ by their seeds alone."""
        return f"{self.task}, {self.label}" if self.label else self.task


class Suite(Section):
    """Many runs over one backbone, in the order in which they are trained."""

    config: SuiteConfig
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _one_backbone(self) -> "Suite":
        assert len({member.config.backbone for member in self.members}) == 1
        return self


def load_runs(path: Path, overrides: Sequence[str] = ()) -> RunConfig | Suite:
    """Reads a recipe as one run, or as a suite where it sets `tasks`, `seeds` or `grid`.

    Raises:
        UserError: with every mistake found, of all runs.
    """
    recipe = with_dotted_grid(read_recipe(path, overrides))
    if not MAKES_SUITE & recipe.values.keys():
        return checked(RunConfig, _of_single_run(recipe))
    config = checked(SuiteConfig, _of_whole_suite(recipe))
    _require_free_settings(recipe, config)
    return Suite(config=config, members=_members(recipe, config))


def _of_single_run(recipe: Recipe) -> Recipe:
    """The recipe without settings of suites, each of which is a mistake."""
    rule, fix = "has no effect on a single run", "set tasks, seeds or grid, or remove it"
    mistakes = [
        Mistake(f"{name} ({recipe.place_of((name,))})", recipe.values[name], rule, fix)
        for name in sorted(ONLY_OF_SUITE & recipe.values.keys())
    ]
    return recipe._replace(values=_of_runs(recipe), mistakes=[*recipe.mistakes, *mistakes])


def _of_whole_suite(recipe: Recipe) -> Recipe:
    """The settings of a suite beside those of its runs; without `seeds` the recipe's `seed` is one."""
    values = {name: recipe.values[name] for name in SuiteConfig.model_fields if name in recipe.values}
    if "seed" not in recipe.values or "seeds" in values:
        return recipe._replace(values=values)
    lines = {**recipe.lines, ("seeds",): recipe.place_of(("seed",))}
    return recipe._replace(values={**values, "seeds": [recipe.values["seed"]]}, lines=lines)


def _of_runs(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.values.items() if name not in ONLY_OF_SUITE}


def _members(recipe: Recipe, config: SuiteConfig) -> tuple[Member, ...]:
    """Every run, by task, then by setting, then by seed.

    Raises:
        UserError: with the mistakes of all runs; one that several have is told once.
    """
    settings = combinations(config.grid)
    found: dict[tuple[str, str], tuple[Mistake, dict[str, None]]] = {}  # with the labels that have it
    members = []
    for task, setting, seed in itertools.product(config.tasks or (None,), settings, config.seeds):
        label = label_of(setting)
        try:
            run = checked(RunConfig, _of_member(recipe, config, task, setting, seed))
        except UserError as error:
            for mistake in error.mistakes:
                _, labels = found.setdefault((mistake.where, str(mistake.value)), (mistake, {}))
                labels[label] = None
        else:
            members.append(Member(task or run.data.task or config.name, seed, run, setting, label))
    if found:
        raise UserError([_with_labels(mistake, list(of), len(settings)) for mistake, of in found.values()])
    return tuple(members)


def _with_labels(mistake: Mistake, labels: Sequence[str], settings: int) -> Mistake:
    """A mistake with the combination that has it, where not all of them do."""
    if len(labels) == settings:
        return mistake
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return mistake._replace(rule=f"{mistake.rule} (with {labels[0]}{more})")


def _require_free_settings(recipe: Recipe, config: SuiteConfig) -> None:
    """Refuses settings that a suite sets for each run itself."""
    data = recipe.values.get("data")
    mistakes = []
    if "seed" in recipe.values and "seeds" in recipe.values:
        rule = "cannot be combined with seeds"
        mistakes.append(Mistake("seed", recipe.values["seed"], rule, "set only one"))
    if "tasks" in recipe.values and isinstance(data, dict):
        rule, fix = "cannot be combined with tasks", "remove it: each task has its own"
        mistakes += [
            Mistake(f"data.{name}", data[name], rule, fix) for name in ("task", "path") if name in data
        ]
    for name, values in config.grid.items():
        if recipe.lines.get(tuple(name.split("."))) == COMMAND_LINE:
            where, rule = f"grid.{name}", f"cannot be combined with {name} on the command line"
            mistakes.append(Mistake(where, list(values), rule, "set only one"))
    if mistakes:
        raise UserError(mistakes)


def _of_member(
    recipe: Recipe, config: SuiteConfig, task: str | None, setting: dict[str, Any], seed: int
) -> Recipe:
    """The recipe of one run, in `<folder>/<task>/<label>/seed-<seed>`; a suite may have no tasks or grid."""
    values, lines = _of_runs(recipe), dict(recipe.lines)
    if task:
        values = _with_value(values, ("data", "task"), task)
    for name, value in setting.items():
        key = tuple(name.split("."))
        values = _with_value(values, key, value)
        lines[key] = recipe.place_of(("grid", name))
    folder = config.folder.joinpath(*filter(None, (task, folder_name(label_of(setting)))))
    own = {"name": task or config.name, "seed": seed, "output_dir": str(folder / f"seed-{seed}")}
    return recipe._replace(values=values | own, lines=lines)


def _with_value(values: Mapping[str, Any], key: Sequence[str], value: Any) -> dict[str, Any]:
    """Nested settings with one more, unless what is around it is no section, which validation will tell."""
    name, *inside = key
    if not inside:
        return {**values, name: value}
    section = {} if values.get(name) is None else values[name]
    laid = _with_value(section, inside, value) if isinstance(section, Mapping) else section
    return {**values, name: laid}
