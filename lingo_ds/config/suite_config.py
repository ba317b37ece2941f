"""A recipe that stands for many runs: tasks and seeds over one backbone."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from lingo_ds.config.fields import Section, rule_error
from lingo_ds.config.known_tasks import lookup
from lingo_ds.config.recipe import Recipe, checked, read_recipe
from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import Mistake, UserError

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class SuiteConfig(Section):
    """What a recipe of many runs says beside the settings of each."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = Field(description="Names the suite and its folder.")
    output_dir: Path | None = Field(None, description="Holds a folder per task and seed. null: runs/<name>.")
    tasks: tuple[str, ...] | None = Field(
        None, description="Names of known tasks (docs/tasks.md). null: the recipe's own data."
    )
    seeds: tuple[Seed, ...] = Field((0,), description="Each task is trained with each of these.")

    @field_validator("tasks", "seeds", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, str | int):
            raise rule_error("is no list", f"write [{value}]")
        return value

    @field_validator("tasks", "seeds")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise rule_error("must hold something, each once", "write e.g. [first, second]")
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
        """Of all runs and of the table of results."""
        return self.output_dir or Path("runs") / self.name


class Member(NamedTuple):
    """One run of a suite: a task, by its name in the table, and a seed; `config` is that of a single run."""

    task: str
    seed: int
    config: RunConfig


class Suite(Section):
    """Many runs over one backbone, in the order in which they are made."""

    config: SuiteConfig
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _one_backbone(self) -> "Suite":
        assert len({member.config.backbone for member in self.members}) == 1
        return self


def load_runs(path: Path, overrides: Sequence[str] = ()) -> RunConfig | Suite:
    """Reads a recipe: one run, or with `tasks` or `seeds` a suite of them.

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
    _require_room(recipe)
    mistakes: dict[str, Mistake] = {}  # by setting: what is wrong with one run mostly is with all
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


def _require_room(recipe: Recipe) -> None:
    """A suite sets the task and the seed of each run itself."""
    data = recipe.values.get("data")
    mistakes = []
    if "seed" in recipe.values and "seeds" in recipe.values:
        mistakes.append(Mistake("seed", recipe.values["seed"], "stands beside seeds", "keep one of them"))
    if "tasks" in recipe.values and isinstance(data, dict):
        mistakes += [
            Mistake(f"data.{name}", data[name], "stands beside tasks", "remove it: each task has its own")
            for name in ("task", "path")
            if name in data
        ]
    if mistakes:
        raise UserError(mistakes)


def _of_member(recipe: Recipe, config: SuiteConfig, task: str | None, seed: int) -> Recipe:
    """The recipe of one run, into `<folder>/<task>/seed-<seed>`; of its own data `<folder>/seed-<seed>`."""
    values = {key: copy.copy(value) for key, value in recipe.values.items() if key not in ("tasks", "seeds")}
    if task and isinstance(values.setdefault("data", {}), dict):
        values["data"]["task"] = task
    folder = config.folder / task if task else config.folder
    own = {"name": task or config.name, "seed": seed, "output_dir": str(folder / f"seed-{seed}")}
    return recipe._replace(values=values | own)
