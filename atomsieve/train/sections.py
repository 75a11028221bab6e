"""The sections of a training run's configuration, and what each takes by itself: `atomsieve.train.config` joins them.

Units: eV, Angstrom, eV/Angstrom, hours. Every key has a default except `data[].path`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from atomsieve.errors import AtomSieveError
from atomsieve.models.config import Kind
from atomsieve.structures.conversion.read_options import ReadOptions


class Section(BaseModel):
    """Keys that are strict and frozen: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ConvertSection(Section):
    """How a file that is no dataset is read; the keys are those of `structures.conversion.read_options.ReadOptions`."""

    source: str | None = Field(None, description="source of all labels: their head")
    level_of_theory: str = Field("", description="how the labels were computed, e.g. PBE, PAW (VASP)")
    source_key: str | None = Field(None, description="key under which each structure states its source")
    level_key: str | None = Field(None, description="key under which each structure states its level of theory")
    format: str | None = Field(None, description="of the file, if its name does not tell")
    energy_key: str | None = Field(None, description="name of the total energy; null: names that are certain")
    forces_key: str | None = Field(None, description="name of the forces")
    stress_key: str | None = Field(None, description="name of the stress")
    virial_key: str | None = Field(None, description="name of the virial, minus stress times volume")
    charge_key: str | None = Field(None, description="name of the total charge")
    spin_key: str | None = Field(None, description="name of the multiplicity")
    unit: str = Field("", description="units before those that the file states: energy=hartree,length=bohr")
    stress_sign: int | None = Field(None, description="1: positive under tension; -1: positive under pressure")
    charge: float | None = Field(None, description="total charge of structures that state none")
    spin: float | None = Field(None, description="multiplicity of structures that state none")
    elements: str = Field("", description="symbols of the types 1, 2, ... of formats that number them: Al,Ni")
    topology: str | None = Field(None, description="file with the elements of a trajectory of positions")
    keep_unconverged: bool = Field(False, description="keep steps whose electronic steps did not converge")

    @field_validator("unit", mode="before")
    @classmethod
    def _join_units(cls, value: Any) -> Any:
        """Take `{energy: hartree, length: bohr}` too."""
        return ",".join(f"{key}={word}" for key, word in value.items()) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _is_readable(self) -> ConvertSection:
        try:
            self.reading()
        except AtomSieveError as error:
            raise ValueError(str(error)) from error
        if self.source is not None and not self.level_of_theory and self.level_key is None:
            raise ValueError("source needs level_of_theory, or level_key where each structure states it")
        return self

    def reading(self) -> ReadOptions:
        """Return them as the conversion takes them."""
        return ReadOptions(**self.model_dump())


class DataItem(Section):
    """One file of labelled structures."""

    path: Path = Field(description="dataset folder of `atomsieve data convert`, or any readable file of structures")
    convert: ConvertSection | None = Field(
        None,
        description="how a file that is no dataset is read, e.g. {source: pbe, level_of_theory: PBE, energy_key: "
        "REF_energy, unit: energy=hartree}; the keys are the options of `atomsieve data convert`",
    )
    sources: list[str] | None = Field(None, description="only these sources of the file; null takes all")
    use: Literal["auto", "train", "val", "test", "calibration"] = Field(
        "auto", description="which part the structures belong to; auto divides them by the rules of `split`"
    )
    weight: float = Field(1.0, gt=0, description="multiplies how often the sources of this file are drawn")
    split_by: Literal["structure", "formula"] | None = Field(
        None, description="how this file is divided; null takes split.by"
    )
    references: Literal["fit", "free_atoms", "together"] = Field(
        "fit",
        description="element references: fit to the energies of each source; together: one fit for all sources of this "
        "file, which share code, settings and zero of energy; free_atoms: the energies of single atoms that "
        "`data convert --element-references` found; elements without one are fitted to the rest",
    )


class EnsembleSection(Section):
    """How many members, and how they differ."""

    kind: Kind = Field(
        "deep",
        description="deep: every member is a network of its own; shallow: the members are decoders on one encoder, "
        "which costs about as much as one network",
    )
    members: int = Field(4, ge=1, description="trained networks or decoders; their spread is the uncertainty")
    mode: Literal["together", "spread", "separate"] = Field(
        "together",
        description="together: all members see each batch, geometry shared, batches divided over the ranks; "
        "spread: members dealt to the ranks, each rank has its own data order (no exchange while training); "
        "separate: one member after the other, each with its own data order",
    )
    alike_heads: bool = Field(
        True, description="the heads of a member start alike, so what one source teaches holds for the others at once"
    )
    common_units: int = Field(
        0,
        ge=0,
        description="hidden units of each head, of model.head_hidden, whose weights all heads have in common: what one "
        "source teaches them holds for all; the rest is of each head alone; 0: heads have nothing in common",
    )
    bootstrap: bool = Field(False, description="each member draws its own training set with replacement")
    seed: int = Field(0, ge=0, description="member k starts from seed + k; data order follows from it too")

    @model_validator(mode="after")
    def _starts_in_common(self) -> EnsembleSection:
        if self.common_units and not self.alike_heads:
            raise ValueError("common_units stay common only if the heads start alike; set alike_heads: true")
        return self

    @model_validator(mode="after")
    def _fits_the_kind(self) -> EnsembleSection:
        if self.kind == "shallow" and self.mode != "together":
            raise ValueError(
                f"the decoders of kind: shallow share one encoder, so mode: {self.mode} cannot part them; use mode: "
                "together, or kind: deep"
            )
        if self.kind == "shallow" and self.bootstrap:
            raise ValueError(
                "the decoders of kind: shallow share one encoder, which sees all data, so bootstrap has no use; leave "
                "it out (loss.likelihood makes the decoders differ), or use kind: deep"
            )
        return self


class SplitSection(Section):
    """How structures of data marked `use: auto` are divided."""

    train: float = Field(0.8, gt=0, le=1, description="fraction for training")
    val: float = Field(0.05, ge=0, lt=1, description="fraction for early stopping")
    test: float = Field(0.05, ge=0, lt=1, description="fraction for the final table")
    calibration: float = Field(
        0.1, ge=0, lt=1, description="fraction kept for calibrating the uncertainty; 0 leaves every head uncalibrated"
    )
    by: Literal["structure", "formula"] = Field(
        "structure", description="formula keeps every structure of one reduced formula in the same part"
    )
    min_groups: int = Field(
        20, ge=1, description="a source with fewer formulas than this is divided by structure even if by: formula"
    )
    max_group: float = Field(
        0.1, gt=0, le=1, description="a formula that is more than this part of its source is divided by structure"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitSection:
        total = self.train + self.val + self.test + self.calibration
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test + calibration must be 1, got {total:g}")
        return self


class CleaningSection(Section):
    """Which structures are left out; counts for each reason are printed and written."""

    max_force: float | None = Field(50.0, gt=0, description="largest force norm on an atom, eV/Angstrom")
    min_distance: float | None = Field(0.4, gt=0, description="two atoms closer than this, Angstrom")
    max_volume_per_atom: float | None = Field(1000.0, gt=0, description="fully periodic cells only, Angstrom^3")
    max_energy_deviation: float | None = Field(
        50.0,
        gt=0,
        description="distance of the energy per atom, references taken off, from the source's median, in "
        "robust standard deviations (1.4826 MAD)",
    )
    max_atoms: int | None = Field(None, gt=0, description="atoms in a structure")


class LossSection(Section):
    """Errors are divided by the size of the label in their source (see atomsieve.train.data.label_scales)."""

    energy: float = Field(1.0, ge=0, description="weight of the energy per atom")
    energy_end: float | None = Field(
        None, ge=0, description="weight of the energy at the end of the run, reached linearly; null: as at the start"
    )
    energy_mean: Literal["structures", "atoms"] = Field(
        "structures",
        description="energies of a batch count by structures, or by atoms: large cells then teach as much by their "
        "energies as by their forces, though few of them are in a batch",
    )
    force: float = Field(3.0, ge=0, description="weight of the forces")
    stress: float = Field(0.0, ge=0, description="weight of the stress")
    kind: Literal["mae", "huber", "mse"] = Field("mae", description="what is done with a scaled error")
    huber_delta: float = Field(0.1, gt=0, description="where huber turns from square to straight, in scaled errors")
    energy_range: tuple[float, float] = Field(
        (0.1, 0.2),
        description="the size taken for a source's energies per atom stays between these parts of its output scale",
    )
    force_floor: float = Field(
        1.0, gt=0, description="the size taken for a source's forces is at least this part of its output scale per A"
    )
    likelihood: Literal["none", "nll", "crps"] | None = Field(
        None,
        description="of a shallow ensemble, what teaches its spread the size of its errors: nll (Gaussian of the "
        "members' mean and variance), crps (score of the members as a sample), none; null: nll if shallow",
    )
    likelihood_from: float = Field(
        0.75, ge=0, lt=1, description="part of the run after which the likelihood takes the place of the plain loss"
    )
    likelihood_trains: Literal["all", "decoders"] = Field(
        "all",
        description="all: the likelihood trains everything; decoders: the schedule ends at likelihood_from, and then "
        "the decoders alone learn the spread, beside the plain loss of their mean, which stays about as good as it is",
    )
    force_decoders: int = Field(
        4,
        ge=0,
        description="decoders drawn in each step for the likelihood of forces, each with a backward pass of its own; "
        "0: the likelihood is of energies alone, and the spread of forces is taught nothing",
    )
    variance_floor: float = Field(
        1e-4, gt=0, description="nll: added to the variance of scaled errors, so that no error counts without limit"
    )

    @property
    def spread_taught(self) -> bool:
        """True if a likelihood is in use."""
        return self.likelihood in ("crps", "nll")

    @property
    def spread_apart(self) -> bool:
        """True if the decoders alone learn the spread, after the schedule has ended."""
        return self.spread_taught and self.likelihood_trains == "decoders"

    def schedule(self, part: float) -> tuple[float, bool]:
        """Return the part (0..1) of the present schedule that is done, and whether it is that of the decoders alone."""
        if not self.spread_apart or self.likelihood_from == 0:
            return part, self.spread_apart
        if part < self.likelihood_from:
            return part / self.likelihood_from, False
        return 1.0, True

    def at(self, part: float) -> LossSection:
        """Return the rules when a part (0..1) of the run is done: the weights, and no likelihood before its time."""
        part = min(max(part, 0.0), 1.0)
        update: dict[str, Any] = {}
        if self.energy_end is not None:
            update["energy"] = self.energy + self.schedule(part)[0] * (self.energy_end - self.energy)
        if part < self.likelihood_from and self.spread_taught:
            update["likelihood"] = "none"
        return self.model_copy(update=update) if update else self


class OptimizerSection(Section):
    """The optimiser and its schedule."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw, or muon: Muon for hidden matrices of the encoder, AdamW for the rest"
    )
    lr: float = Field(2e-3, gt=0, description="highest learning rate")
    min_lr_ratio: float = Field(0.01, ge=0, le=1, description="where the schedule ends, as a part of lr")
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="muon: decay of the momentum")
    muon_steps: int = Field(5, ge=1, le=20, description="muon: Newton-Schulz iterations of each step")
    muon_heads: bool = Field(False, description="muon: for the hidden layers of the heads too")
    warmup: float = Field(0.02, ge=0, lt=1, description="part of the run in which lr rises from zero")
    schedule: Literal["cosine", "linear", "stable", "plateau", "constant"] = Field(
        "cosine",
        description="course of lr after the warm-up: cosine and linear fall to the end; stable stays and falls "
        "linearly in the last part `decay`; plateau falls when evaluations show no progress; constant",
    )
    decay: float = Field(0.3, gt=0, le=1, description="stable: part of the run in which lr falls")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: lr is multiplied by this ...")
    plateau_patience: int = Field(5, ge=1, description="... after so many evaluations without progress")
    clip: float | None = Field(10.0, gt=0, description="largest gradient norm, of each member by itself")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the running mean of the weights; 0 turns it off")
    ema_part: float | None = Field(
        None,
        gt=0,
        le=0.1,
        description="the running mean looks back over this part of the steps done, however many they are; null: over "
        "1 / (1 - ema) steps",
    )

    @model_validator(mode="after")
    def _mean_is_on(self) -> OptimizerSection:
        if self.ema_part is not None and not self.ema:
            raise ValueError("ema_part needs the running mean, which ema: 0 turns off; leave one of them out")
        return self


class BatchSection(Section):
    """Size of a global batch (over all ranks); the first limit met ends it."""

    atoms: int | None = Field(512, gt=0)
    structures: int | None = Field(None, gt=0)
    edges: int | None = Field(None, gt=0, description="directed edges; counted once at the start")
    balance: float = Field(
        0.75,
        ge=0,
        le=1,
        description="a source with a part p of all atoms is drawn in proportion to p**balance "
        "(1: as they are, 0: all sources alike)",
    )
    eval_atoms: int = Field(2000, gt=0, description="atoms in a batch of evaluation")
    in_memory: float = Field(4.0, gt=0, description="GB up to which the structures are held in memory")


class BudgetSection(Section):
    """When training ends: at the first of these. The schedules follow the one of which most is used."""

    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    hours: float | None = Field(None, gt=0, description="wall time of training, evaluations included")
    core_minutes: float | None = Field(
        None,
        gt=0,
        description="processor time of all ranks and threads together, evaluations included; unlike hours, other work "
        "on the machine does not count",
    )
    eval_every: int | None = Field(None, gt=0, description="steps between evaluations; null: once an epoch")
    eval_structures: int | None = Field(
        2000, gt=0, description="at most so many validation structures in these evaluations"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without progress")
    checkpoint_minutes: float = Field(5.0, gt=0, description="wall time between `last` checkpoints")

    @model_validator(mode="after")
    def _some_end(self) -> BudgetSection:
        if self.epochs is None and self.steps is None and self.hours is None and self.core_minutes is None:
            object.__setattr__(self, "epochs", 100.0)
        return self
