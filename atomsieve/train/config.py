"""The configuration of a training run: one strict schema for the YAML file, `--set`, the documentation and the example.

Units: eV, Angstrom, eV/Angstrom, hours. Every key has a default except `data` and, with several heads, `default_head`.
The sections stand in `atomsieve.train.sections`; here they are joined, checked against each other, read and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from atomsieve.errors import UsageError, unknown
from atomsieve.models.config import ModelConfig, section_keys
from atomsieve.train.sections import (
    BatchSection,
    BudgetSection,
    CleaningSection,
    ConvertSection,
    DataItem,
    EnsembleSection,
    LossSection,
    OptimizerSection,
    Section,
    SplitSection,
)

__all__ = [
    "BatchSection",
    "BudgetSection",
    "CleaningSection",
    "ConvertSection",
    "DataItem",
    "EnsembleSection",
    "LossSection",
    "OptimizerSection",
    "SplitSection",
    "TrainConfig",
    "apply_settings",
    "dump_config",
    "load_config",
    "parse_config",
]


def _defaults(kind: type[BaseModel]) -> Any:
    """Return a field whose default is a section of defaults."""
    return Field(default_factory=lambda: kind.model_validate({}))


class TrainConfig(Section):
    """A whole run."""

    data: list[DataItem] = Field(min_length=1)
    output: Path = Field(Path("run"), description="checkpoints, logs and plots; the ensemble is written to output/gfm")
    default_head: str | None = Field(
        None, description="head (source) that screening uses if none is named; needed with several heads"
    )
    model: ModelConfig = _defaults(ModelConfig)
    ensemble: EnsembleSection = _defaults(EnsembleSection)
    split: SplitSection = _defaults(SplitSection)
    cleaning: CleaningSection = _defaults(CleaningSection)
    loss: LossSection = _defaults(LossSection)
    optimizer: OptimizerSection = _defaults(OptimizerSection)
    batch: BatchSection = _defaults(BatchSection)
    budget: BudgetSection = _defaults(BudgetSection)
    precision: Literal["fp32", "fp64"] = Field("fp32", description="arithmetic of training")
    device: str = Field("auto", description="cpu, cuda, cuda:N, or auto (a GPU if there is one)")
    tensorboard: bool = Field(True, description="write TensorBoard files too, if it is installed")

    @model_validator(mode="after")
    def _common_units_fit(self) -> TrainConfig:
        common, hidden = self.ensemble.common_units, self.model.head_hidden
        if common > hidden:
            raise ValueError(f"ensemble.common_units must be at most model.head_hidden ({hidden}), got {common}")
        if common and self.optimizer.kind == "muon" and self.optimizer.muon_heads:
            raise ValueError(
                "optimizer.muon_heads moves each head's matrix as a whole, which would part ensemble.common_units; set "
                "one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _likelihood_fits(self) -> TrainConfig:
        """Resolve the likelihood for the kind of the ensemble."""
        loss, members = self.loss, self.ensemble.members
        if self.ensemble.kind == "deep":
            if loss.spread_taught:
                raise ValueError(
                    f"loss.likelihood: {loss.likelihood} is for ensemble.kind: shallow; members of kind: deep are "
                    "trained apart, leave it out"
                )
            resolved = "none"
        else:
            resolved = loss.likelihood or "nll"
        if resolved != "none" and members < 2:
            raise ValueError(f"loss.likelihood: {resolved} needs ensemble.members of 2 or more, got {members}")
        if resolved != "none" and (loss.force_decoders == 1 or loss.force_decoders > members):
            raise ValueError(
                f"loss.force_decoders must be 0, or from 2 to ensemble.members ({members}), got {loss.force_decoders}"
            )
        object.__setattr__(self, "loss", loss.model_copy(update={"likelihood": resolved}))
        return self


def _list_allowed_keys(path: Sequence[Any]) -> list[str]:
    """Return the keys that the section at `path` of the schema takes."""
    model: Any = TrainConfig
    for part in path:
        if isinstance(part, int):
            continue
        if model is ModelConfig and part not in model.model_fields:
            return section_keys(str(part))
        annotation = model.model_fields[part].annotation
        arguments = [annotation, *getattr(annotation, "__args__", ())]
        model = next(a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel))
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _one_line(error: ValidationError) -> UsageError:
    """Turn pydantic's report into one line about its first finding."""
    first = error.errors()[0]
    where = [*first["loc"]]
    name = ".".join(map(str, where)) or "the configuration"
    if first["type"] == "extra_forbidden":
        prefix = ".".join(map(str, where[:-1]))
        section = f"configuration key of {prefix}" if prefix else "configuration key"
        return unknown(section, str(where[-1]), _list_allowed_keys(where[:-1]))
    if first["type"] == "missing":
        return UsageError(f"configuration: {name} is missing; see `atomsieve train init` for an example")
    message = first["msg"].removeprefix("Value error, ")
    value = f", got {first['input']!r}" if not isinstance(first["input"], dict) else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UsageError(f"configuration: {name}: {message}{value}{more}")


def parse_config(raw: dict[str, Any]) -> TrainConfig:
    """Check a plain dictionary against the schema.

    Raises
    ------
    UsageError
        one line: the key, its value, what is allowed, and the nearest key to an unknown one.
    """
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        raise _one_line(error) from error


def apply_settings(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return a copy with `a.b=value` settings put in; values are read as YAML, `data.0.path` reaches into lists."""
    import copy

    out = copy.deepcopy(raw)
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise UsageError(f"--set wants key=value, got {setting!r}; for example --set optimizer.lr=1e-3")
        node: Any = out
        *parents, last = key.split(".")
        for part in parents:
            if isinstance(node, list):
                if not part.isdigit() or int(part) >= len(node):
                    raise UsageError(f"--set {setting}: {part!r} is no position in a list of {len(node)}")
                node = node[int(part)]
            else:
                node = node.setdefault(part, {})
            if not isinstance(node, dict | list):
                raise UsageError(f"--set {setting}: {part!r} is a value and has no keys below it")
        value = _number(yaml.safe_load(text))
        if isinstance(node, list):
            if not last.isdigit() or int(last) >= len(node):
                raise UsageError(f"--set {setting}: {last!r} is no position in a list of {len(node)}")
            node[int(last)] = value
        else:
            node[last] = value
    return out


def _number(value: Any) -> Any:
    """Read `1e-3`, which YAML 1.1 calls a string, as the number it is meant to be."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_config(path: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration; relative data and output paths are taken from the file's own folder.

    Raises
    ------
    UsageError
        if the file is absent, is not YAML, or does not fit the schema.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must hold keys and values, got {type(raw).__name__}")
    config = parse_config(_floats(apply_settings(raw, settings)))
    base = path.resolve().parent
    data = [_resolve_paths(item, base) for item in config.data]
    return config.model_copy(update={"data": data, "output": base / config.output})


def _resolve_paths(item: DataItem, base: Path) -> DataItem:
    convert = item.convert
    if convert is not None and convert.topology is not None:
        convert = convert.model_copy(update={"topology": str(base / convert.topology)})
    return item.model_copy(update={"path": base / item.path, "convert": convert})


def _floats(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: v if k in ("path", "output", "default_head", "convert") else _floats(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_floats(v) for v in node]
    return _number(node)


def dump_config(config: TrainConfig) -> str:
    """Return the resolved configuration as YAML."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text
