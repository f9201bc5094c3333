"""The three claims about a method, and what a study's comparisons say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.study.comparisons import CONTROL, Comparisons
from metricunet.study.settings import Amount, Pair, Study
from metricunet.study.verdict import Verdict, Worthwhile, join, judge


@dataclass(frozen=True)
class Claim:
    """A claim about a pair of arms.

    Attributes:
        letter: a, b or c, as the design names them.
        text: in words.
        measures: all of which have to speak for it.
    """

    letter: str
    text: str
    measures: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """What a study says of a claim.

    Attributes:
        place: of the pair in the study file.
        pair: the arms.
        claim: about them.
        verdict: of all measures together.
        parts: of each measure.
    """

    place: str
    pair: Pair
    claim: Claim
    verdict: Verdict
    parts: tuple[tuple[str, Verdict], ...]


def claims_of(pair: Pair, target: str, primary: Sequence[str]) -> tuple[Claim, ...]:
    """Return the claims about a pair, those of the method's paper."""
    b, a = pair.method, pair.baseline
    return (
        Claim("a", f"Voxel features of {b} are more representative than those of {a}", FEATURE_NAMES),
        Claim("b", f"Neighbourhoods are smoother in the masks of {b} than in those of {a}", SMOOTHNESS_NAMES),
        Claim("c", f"{b} segments the {target} better than {a}", tuple(primary)),
    )


def judge_all(plan: Study, comparisons: Comparisons) -> list[Judged]:
    """Judge every claim about every pair; one of whose measures there is no comparison is left out."""
    phantom = plan.content.data.phantom is not None
    judged: list[Judged] = []
    for place, pair in plan.content.pairs.items():
        for claim in claims_of(pair, plan.base.target, plan.content.measures.primary):
            parts: list[tuple[str, Verdict]] = []
            for measure in claim.measures:
                main = comparisons.find(place, measure, plan.base.target)
                control = comparisons.find(f"{place} {CONTROL}", measure, plan.base.target)
                if main is None:
                    continue
                verdict = judge(
                    claim.text,
                    main.comparison,
                    None if control is None else control.comparison,
                    worthwhile(plan.content.measures.worthwhile.get(measure, 0.0)),
                    data="the phantom" if phantom else "this cohort",
                )
                parts.append((measure, verdict))
            if len(parts) == len(claim.measures):
                whole = join(claim.text, [verdict for _, verdict in parts])
                judged.append(Judged(place, pair, claim, whole, tuple(parts)))
    return judged


def worthwhile(amount: Amount) -> Worthwhile:
    """Read the smallest benefit that matters, as a study file has it."""
    if isinstance(amount, str):
        return Worthwhile(float(amount.removesuffix("%")), percent=True)
    return Worthwhile(amount)
