"""Is the ensemble good? Sentences made from the headline numbers of an evaluation, with the reasons in them.

One function, `judge`, speaks at the end of a training, in `atomsieve evaluate`, in the model card and on the page.
Every sentence names the number that it rests on and what that number is compared with. Thresholds: `limits.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from atomsieve.evaluation.limits import MILLI, limit
from atomsieve.text import pluralize

Grade = Literal["good", "fair", "poor", "unknown"]
PARTS = ("test", "val", "calibration")
"""Parts of a training's metrics.json, the one to judge by first."""
_ORDER: tuple[Grade, ...] = ("poor", "unknown", "fair", "good")


@dataclass(frozen=True)
class Remark:
    """A sentence about one subject, and how good what it says is."""

    about: Literal["training", "data", "energies", "forces", "intervals", "domain"]
    grade: Grade
    text: str


@dataclass(frozen=True)
class Verdict:
    """Sentences about the training and all heads together, and about each head."""

    general: list[Remark]
    heads: dict[str, list[Remark]]

    def as_plain(self) -> dict[str, Any]:
        """Return the verdict as plain values, as it stands in metrics.json."""
        return {
            "general": [asdict(remark) for remark in self.general],
            "heads": {name: [asdict(remark) for remark in remarks] for name, remarks in self.heads.items()},
        }

    def format_lines(self) -> list[str]:
        """Return the verdict as lines for a terminal: general sentences, then those of each head under its name."""
        lines = [remark.text for remark in self.general]
        for name, remarks in self.heads.items():
            lines += [f"{name}:", *(f"  {remark.text}" for remark in remarks)]
        return lines


def judge(metrics: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an evaluation.

    metrics : content of a metrics.json, of `atomsieve evaluate` or of a training, also of earlier versions.
    """
    heads = {name: read_headline(row) for name, row in _find_heads(metrics).items()}
    remarks = {name: judge_head(row) for name, row in heads.items()}
    general = judge_training(metrics.get("training")) if isinstance(metrics.get("training"), Mapping) else []
    data = metrics["data"] if isinstance(metrics.get("data"), Mapping) else {}
    part = data.get("part")
    if part in ("val", "calibration"):
        why = {"val": "the weights were chosen by it", "calibration": "the intervals were fitted to it"}[part]
        words = f"No test structures were kept, so these are numbers of the {part} part; {why}, so they are too good."
        general.append(Remark("data", "fair", words))
    general += [Remark("data", "poor", f"Labels may be wrong: {finding}.") for finding in data.get("findings", [])]
    return Verdict([*general, *_sum_up(remarks, metrics.get("default_head"))], remarks)


def _find_heads(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(metrics.get("heads"), Mapping):
        return dict(metrics["heads"])
    return next((dict(metrics[part]) for part in PARTS if isinstance(metrics.get(part), Mapping)), {})


def read_headline(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline numbers of a head from a metrics.json of any version.

    Evaluations of version 1 hold errors and coverages alone, in eV; trainings of that time no coverages.
    """
    plain = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
    for name, number in (("energy", "energies"), ("force", None)):
        old = row.get(name)
        if isinstance(old, dict) and f"{name}_mae" not in plain:
            plain |= {f"{name}_{key}": MILLI * old[key] for key in ("mae", "rmse") if old.get(key) is not None}
            plain |= {f"{name}_{key}": old[key] for key in ("coverage", "coverage_se") if key in old}
            if number is not None:
                plain[number] = old.get("structures", 0)
    return plain


def judge_head(row: Mapping[str, Any]) -> list[Remark]:
    """Return the sentences about one head from its headline numbers (`compute_headline`)."""
    tested, taught = row.get("structures", 0), row.get("train_structures")
    out = []
    if taught is not None and taught < limit("few_taught"):
        out.append(Remark("data", "poor", f"Small: this head learnt from {pluralize(taught, 'structure')} only."))
    if tested < limit("few_structures"):
        words = f"Only {pluralize(tested, 'structure')} to compare with: too few to say how good this head is."
        out.append(Remark("data", "unknown", words))
    out += _judge_energies(row) + _judge_forces(row) + _judge_intervals(row)
    share = row.get("in_domain")
    if share is not None and tested and 1 - share > limit("outside"):
        words = f"{_percent(1 - share)} of these structures lie outside of the head's domain."
        out.append(Remark("domain", "fair", words))
    return out


# -- energies ------------------------------------------------------------------------------------------------------


def _judge_energies(row: Mapping[str, Any]) -> list[Remark]:
    error = row.get("energy_mae")
    if error is None:
        return []
    baseline, nearest, rank = (row.get(key) for key in ("energy_baseline", "energy_composition", "energy_rank"))
    words = f"Energies: error {_size(error)} meV/atom"
    if not baseline:
        return [Remark("energies", "unknown", f"{words}; nothing to compare it with.")]
    words += f", {_percent(error / baseline)} of that of element references alone ({_size(baseline)})"
    if nearest:
        words += f", {_percent(error / nearest)} of copying the nearest training composition ({_size(nearest)})"
    if rank is not None:
        words += f", rank correlation {rank:.2f}"
    ratio = error / min(value for value in (baseline, nearest) if value)
    kinds = row.get("compositions")
    between = kinds is None or kinds >= limit("few_compositions")
    grade = _grade_energies(ratio, rank, error if between else 0.0)
    what = "ranking" if kinds is None else "ranking between compositions"
    what = what if between else "comparing structures of one composition"
    if ratio >= 1:
        by = "element references" if baseline <= (nearest or baseline) else "copying the nearest composition"
        use = f"no better than {by}, so of no use"
    else:
        use = {"good": f"good for {what}", "fair": f"of use for a coarse {what}", "poor": f"too coarse for {what}"}[
            grade
        ]
    if between and ratio < 1 and grade != "poor" and error > limit("hull"):
        use += f", not to decide what is stable (that asks for less than {limit('hull'):g} meV/atom)"
    return [Remark("energies", _unless_few(grade, row), f"{words}: {use}.")]


def _grade_energies(ratio: float, rank: float | None, error: float) -> Grade:
    """Return the grade of energies; error in meV/atom counts between compositions (0 elsewhere)."""
    if ratio >= 1 or ratio > limit("energy_fair") or (rank is not None and rank < limit("rank_fair")):
        return "poor"
    good = ratio <= limit("energy_good") and (rank is None or rank >= limit("rank_good"))
    return "good" if good and error <= limit("coarse") else "fair"


# -- forces --------------------------------------------------------------------------------------------------------


def _judge_forces(row: Mapping[str, Any]) -> list[Remark]:
    error, zero = row.get("force_mae"), row.get("force_baseline")
    if error is None:
        return []
    words = f"Forces: error {_size(error)} meV/Å per component"
    if not zero:
        return [Remark("forces", "unknown", f"{words}; all labels are zero, or unknown.")]
    ratio = error / zero
    relaxed = zero < limit("force_small")
    if ratio >= 1:
        words += f", worse than predicting zero for these {'relaxed ' if relaxed else ''}structures ({_size(zero)})"
        if error <= limit("force_stop") / 2:
            words += f", though small beside the {limit('force_stop'):g} meV/Å at which relaxations stop"
            return [Remark("forces", "unknown", f"{words}: larger forces are untested.")]
        use = "relaxations will leave the true minimum" if relaxed else "of no use"
        return [Remark("forces", _unless_few("poor", row), f"{words}: {use}.")]
    words += f", {_percent(ratio)} of that of predicting zero ({_size(zero)})"
    grade: Grade = "good" if ratio <= limit("force_good") else "fair" if ratio <= limit("force_fair") else "poor"
    use = {
        "good": "good for relaxation and dynamics",
        "fair": "of use for relaxations whose results are checked",
        "poor": "too coarse for relaxations",
    }[grade]
    if ratio > limit("like_zero"):
        use = "no better than zero"
    remarks = [Remark("forces", _unless_few(grade, row), f"{words}: {use}.")]
    return remarks + _judge_relaxed(row)


def _judge_relaxed(row: Mapping[str, Any]) -> list[Remark]:
    """Return a sentence where forces of the relaxed structures among others are worse than zero, and not small."""
    number, error, zero = (row.get(key) for key in ("relaxed", "relaxed_force_mae", "relaxed_force_baseline"))
    if number is None or error is None or zero is None or number < limit("few_relaxed"):
        return []
    if number == row.get("structures") or error < zero or error <= limit("force_stop") / 2:
        return []
    words = (
        f"Forces are worse than zero for the {number:,} relaxed structures among these ({_size(error)} against "
        f"{_size(zero)} meV/Å): relaxations will leave the true minimum."
    )
    return [Remark("forces", "poor", words)]


# -- intervals -----------------------------------------------------------------------------------------------------


def _judge_intervals(row: Mapping[str, Any]) -> list[Remark]:
    held, off, none, sure = [], [], [], True
    for name, plural in (("energy", "energies"), ("force", "forces")):
        if row.get(f"{name}_mae") is None or f"{name}_coverage" not in row:
            continue
        share, error = row[f"{name}_coverage"], row.get(f"{name}_coverage_se") or 0.0
        if share is None:
            none.append(plural)
            continue
        held.append(f"{_percent(share)} of {plural}")
        wrong = share - 0.9
        if abs(wrong) > max(limit("coverage_off"), 2 * error):
            little = "a little " if abs(wrong) <= limit("coverage_far") else ""
            off.append(f"those of {plural} are {little}too {'narrow' if wrong < 0 else 'wide'}")
    out = []
    if held:
        state = "; ".join(off) if off else "as they should"
        narrow = any("are too narrow" in words for words in off)
        grade: Grade = "poor" if narrow else "fair" if off else "good"
        sure = row.get("structures", 0) >= limit("few_structures")
        words = f"90 % intervals held {' and '.join(held)}: {state}."
        out.append(Remark("intervals", grade if sure else "unknown", words))
    if none:
        words = f"Without intervals for {' and '.join(none)}: uncalibrated (atomsieve calibrate)."
        out.append(Remark("intervals", "poor", words))
    return out


# -- the training, and all heads together --------------------------------------------------------------------------


def judge_training(training: Mapping[str, Any] | None) -> list[Remark]:
    """Return a sentence about how long an ensemble was trained and whether its loss still fell (`training`)."""
    if not training or not training.get("steps"):
        return []
    steps, epochs = training["steps"], training.get("epochs")
    words = f"Trained for {pluralize(steps, 'step')}"
    if epochs is not None:
        words += f", {epochs:.2g} epochs of {training.get('train_structures', 0):,} structures"
    longer = "train longer (budget.core_minutes or budget.steps)"
    short = steps < limit("few_steps") or (epochs is not None and epochs < limit("few_epochs"))
    what = "score of the held-out structures" if training.get("fall_of") == "validation" else "training loss"
    fall, error = training.get("fall"), training.get("fall_se") or 0.0
    grade: Grade = "poor" if short else "good"
    if epochs is not None and epochs < 1:
        state = f"less than one pass over them: {longer}"
    elif fall is not None and fall > max(limit("falling"), 2 * error):
        grade = "poor" if short else "fair"
        state = f"the {what} fell by {_percent(fall)} when the steps last doubled: "
        state += longer if short else "longer training would still help"
    elif short:
        state = f"which is short: {longer}"
    elif fall is None:
        grade, state = "unknown", ""
    else:
        state = f"the {what} no longer falls: more data help more than more steps"
    if training.get("skipped"):
        state += f"; {pluralize(training['skipped'], 'step')} left out, whose loss was not finite"
    return [Remark("training", grade, f"{words}{'; ' if state else ''}{state}.")]


def _sum_up(remarks: Mapping[str, list[Remark]], default: str | None) -> list[Remark]:
    """Return sentences that count the heads by what they are good for."""
    out = []
    for about, words in (("energies", "Energies"), ("forces", "Forces")):
        grades = {name: _worst(found, about) for name, found in remarks.items()}
        grades = {name: grade for name, grade in grades.items() if grade is not None}
        if len(grades) < 2:
            continue
        counts = [
            f"{kind} for {_list_heads([name for name, grade in grades.items() if grade == of], len(grades))}"
            for of, kind in (("good", "good"), ("fair", "coarse"), ("poor", "bad"), ("unknown", "not known"))
            if of in grades.values()
        ]
        grade = grades.get(default or "") or min(grades.values(), key=_ORDER.index)
        out.append(Remark(about, grade, f"{words}: {'; '.join(counts)}."))  # type: ignore[arg-type]
    return out


def _list_heads(names: list[str], among: int) -> str:
    if len(names) == among:
        return f"all {among} heads"
    return f"{', '.join(names)} ({len(names)} of {among})" if len(names) <= 8 else f"{len(names)} of {among} heads"


def _worst(remarks: list[Remark], about: str) -> Grade | None:
    found = [remark.grade for remark in remarks if remark.about == about]
    return min(found, key=_ORDER.index) if found else None


def _unless_few(grade: Grade, row: Mapping[str, Any]) -> Grade:
    """Return the grade, or unknown where there are too few structures to judge by."""
    return grade if row.get("structures", 0) >= limit("few_structures") else "unknown"


def _size(value: float) -> str:
    """Write an error: whole numbers from 10 on, else two digits."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 0.0095 else f"{100 * share:.1g} %"
