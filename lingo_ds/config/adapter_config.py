"""What learns and how its rank adapts: the sections `adapter`, `head` and `rank_sampling`."""

import re
import warnings
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lingo_ds.config.fields import MAX_COUNT, BelowOne, Duration, PositiveInt, Section, rule_error


class AdapterConfig(Section):
    """The low-rank adapters."""

    method: Literal["svd", "lora", "none"] = Field(
        "svd",
        description="svd: P diag(lam) Q of AdaLoRA (arXiv 2303.10512); lora: P Q of LoRA (arXiv 2106.09685), "
        "without rank sampling; none: the head alone learns (a linear probe).",
    )
    init: Literal["lora", "adalora"] = Field(
        "lora",
        description="Initial values of new adapters, which change nothing either way. lora: P = 0, lam = 1, "
        "Q uniform, so that every triplet learns from the first step; adalora: lam = 0, P and Q ~ "
        "N(0, 0.02^2).",
    )
    rank: PositiveInt = Field(8, description="Initial rank r0 of every site.")
    alpha: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="Numerator of the scale alpha / r0 of the adapter's output. auto: 2 * rank."
    )
    dropout: BelowOne = Field(
        0.0, description="Probability with which an entry of the adapter's input is dropped."
    )
    targets: str | list[str] = Field(
        "all-linear",
        description="Linear maps that get an adapter: `all-linear` (the family's maps), a list of names, or "
        "one regular expression on full names.",
    )

    @property
    def numerator(self) -> float:
        """The number that `alpha` stands for."""
        return 2.0 * self.rank if self.alpha == "auto" else self.alpha

    @field_validator("targets")
    @classmethod
    def _targets(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise rule_error("names no map", "write all-linear, a list of names or a regular expression")
        if isinstance(value, str) and value != "all-linear":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # a later Python will read such an expression otherwise
                    re.compile(value)
            except (re.error, OverflowError, RecursionError, Warning) as error:
                raise rule_error(
                    f"is not a regular expression ({error})", "correct it, or write a list"
                ) from None
        return value


class HeadConfig(Section):
    """The classifier on top, trained with the adapters."""

    pooling: Literal["last", "mean", "first"] = Field(
        "last",
        description="Hidden state that is classified: that of the last real token, the mean, or that of the "
        "first token.",
    )


class RankSamplingConfig(Section):
    """Adaptive rank sampling (arXiv 2402.08075): a shrinking triplet budget, some given back by chance."""

    mode: Literal["exact", "bernoulli", "deterministic", "reference", "off"] = Field(
        "exact",
        description="exact: the budget is met at every mask; bernoulli: the paper's draw, which meets it on "
        "average; deterministic: the best by score; reference: the published code; off: no masks.",
    )
    target_rank: PositiveInt = Field(4, description="Average rank per site after the final mask.")
    min_rank: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        0, description="Least number of triplets that every site keeps."
    )
    rho: BelowOne = Field(0.1, description="Probability that a kept triplet leaves.")
    rho_final: BelowOne | None = Field(
        0.0, description="Value to which rho decays linearly until the final mask. null: rho is constant."
    )
    reintroduction: Literal["uniform", "score"] = Field(
        "score",
        description="How the triplets that come back are drawn. uniform: all alike; score: in proportion to "
        "their score.",
    )
    interval: PositiveInt | Literal["auto"] = Field(
        "auto", description="Steps between two masks. auto: so many that masks change about 20 times."
    )
    t_init: Duration = Field(
        0.1, description="Warm-up with all triplets, in steps or as a fraction of the run."
    )
    t_final: Duration = Field(
        0.5, description="Last part of the run, at the target budget, in steps or as a fraction of the run."
    )
    pruned_value: Literal["hold", "zero"] = Field(
        "hold",
        description="What becomes of a pruned triplet. hold: it keeps its values; "
        "zero: its lam is set to 0 and may regrow (AdaLoRA).",
    )
    orthogonality: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight gamma of the penalty on ||P^T P - I|| and ||Q Q^T - I||."
    )
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.85, description="Decay of the moving average of the sensitivity, per step."
    )
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.85, description="Decay of the moving average of the uncertainty, per step."
    )
    audit_interval: PositiveInt = Field(
        100, description="Steps between two comparisons of all processes' banks."
    )
    on_divergence: Literal["repair", "raise"] = Field(
        "repair",
        description="Reaction to an audit that finds a difference. repair: broadcast from global rank 0; "
        "raise: stop the run.",
    )

    @property
    def scales(self) -> bool:
        """Whether the phases are fractions that leave room for masks in any run that is long enough."""
        return self.t_init < 1 and self.t_final < 1 and self.t_init + self.t_final < 1
