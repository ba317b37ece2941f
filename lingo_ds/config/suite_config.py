"""Recipes of many runs: each task with each seed, over one backbone."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from lingo_ds.config.fields import Name, Section, UserPath, rule_error
from lingo_ds.config.known_tasks import lookup
from lingo_ds.config.recipe import Recipe, checked, read_recipe
from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import Mistake, UserError

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class SuiteConfig(Section):
    """Settings of a suite as a whole, beside those of its runs."""

    name: Annotated[Name, Field(pattern=r"^\w[\w.-]*$")] = Field(
        description="Name of the suite and of its folder."
    )
    output_dir: UserPath | None = Field(
        None, description="Folder that holds one folder per task and seed. null: runs/<name>."
    )
    tasks: tuple[str, ...] | None = Field(
        None, description="Names of known tasks (docs/tasks.md) to train. null: the recipe's own data."
    )
    seeds: tuple[Seed, ...] = Field((0,), description="Seeds with each of which each task is trained.")

    @field_validator("tasks", "seeds", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, str | int):
            raise rule_error("is not a list", f"write [{value}]")
        return value

    @field_validator("tasks", "seeds")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise rule_error("must not be empty or repeat an item", "write e.g. [first, second]")
        return value

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


class Member(NamedTuple):
    """One run of a suite: the task's name in the table, the seed, and the config of the run."""

    task: str
    seed: int
    config: RunConfig


class Suite(Section):
    """Many runs over one backbone, in the order in which they are trained."""

    config: SuiteConfig
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _one_backbone(self) -> "Suite":
        assert len({member.config.backbone for member in self.members}) == 1
        return self


def load_runs(path: Path, overrides: Sequence[str] = ()) -> RunConfig | Suite:
    """Reads a recipe as one run, or as a suite where it sets `tasks` or `seeds`.

    Raises:
        UserError: with every mistake found, of all runs.
    """
    recipe = read_recipe(path, overrides)
    if not {"tasks", "seeds"} & recipe.values.keys():
        return checked(RunConfig, recipe)
    own = SuiteConfig.model_fields.keys()
    config = checked(
        SuiteConfig,
        recipe._replace(values={key: value for key, value in recipe.values.items() if key in own}),
    )
    _require_free_settings(recipe)
    mistakes: dict[str, Mistake] = {}  # by setting: a mistake in one run is mostly one in all
    members = []
    for task in config.tasks or (None,):
        for seed in config.seeds:
            try:
                run = checked(RunConfig, _of_member(recipe, config, task, seed))
            except UserError as error:
                mistakes |= {mistake.where: mistake for mistake in error.mistakes}
            else:
                members.append(Member(task or run.data.task or config.name, seed, run))
    if mistakes:
        raise UserError(list(mistakes.values()))
    return Suite(config=config, members=tuple(members))


def _require_free_settings(recipe: Recipe) -> None:
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
    if mistakes:
        raise UserError(mistakes)


def _of_member(recipe: Recipe, config: SuiteConfig, task: str | None, seed: int) -> Recipe:
    """The recipe of one run, in `<folder>/<task>/seed-<seed>`; without a task in `<folder>/seed-<seed>`."""
    values = {key: copy.copy(value) for key, value in recipe.values.items() if key not in ("tasks", "seeds")}
    if task and isinstance(values.setdefault("data", {}), dict):
        values["data"]["task"] = task
    folder = config.folder / task if task else config.folder
    own = {"name": task or config.name, "seed": seed, "output_dir": str(folder / f"seed-{seed}")}
    return recipe._replace(values=values | own)
