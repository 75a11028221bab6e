"""A commented example of a training configuration, made from the schema itself."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from atomsieve.models.config import ModelConfig
from atomsieve.models.registry import encoders
from atomsieve.train.config import DataItem, TrainConfig

LINE = 100
"""Width of the example configuration."""

RECIPE: dict[str, dict[str, Any]] = {
    "model": {
        "hidden": 96,
        "layers": 2,
        "cutoff": 4.5,
        "typical_neighbors": 25.0,
        "head_hidden": 64,
        "repulsion": "zbl",
    },
    "ensemble": {"kind": "shallow", "members": 8, "common_units": 32},
    "loss": {
        "energy_end": 3.0,
        "force_floor": 0.6,
        "energy_range": (0.05, 0.2),
        "likelihood_from": 0.95,
        "likelihood_trains": "decoders",
    },
    "optimizer": {"kind": "muon", "lr": 3.5e-3, "warmup": 0.01, "clip": 20.0},
    "batch": {"atoms": 384, "balance": 0.5},
}
"""What made ensembles most accurate in equal time (docs/benchmarks.md, The recipe), where it is not the default.

Defaults stay as they are: a configuration that leaves keys out means what it always did.
"""


def example_config() -> str:
    """Return a commented example, made from the schema itself."""
    lines = [
        "# Training configuration. Units: eV, Angstrom, hours. The values did best in equal time (docs/benchmarks.md);",
        "# where a configuration without the key takes another, the comment says so.",
        "",
    ]
    for name, field in TrainConfig.model_fields.items():
        if name == "data":
            lines += ["data:", "  - path: train.bp"]
            lines += _comment_keys(DataItem, "    ", skip={"path"})
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            doc = (annotation.__doc__ or "").strip().split("\n")[0]
            lines += ["", f"# {doc}", f"{name}:", *_comment_keys(annotation, "  ", recipe=RECIPE.get(name))]
            if annotation is ModelConfig:
                lines += _encoder_sections()
        else:
            lines += _comment_keys(TrainConfig, "", only={name})
    return "\n".join(lines) + "\n"


def _encoder_sections() -> list[str]:
    """Return an empty section for each encoder that has options."""
    own = [plugin for plugin in encoders().values() if plugin.Config.model_fields]
    return [f"  {of.section_name()}: null  # of encoder {of.name}; null with every other" for of in own]


def _comment_keys(
    model: type[BaseModel],
    indent: str,
    *,
    only: set[str] | None = None,
    skip: set[str] | None = None,
    recipe: dict[str, Any] | None = None,
) -> list[str]:
    """Return a commented line for each key; a comment that would make it long stands above it."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        if field.exclude or (only is not None and name not in only) or (skip is not None and name in skip):
            continue
        text = default = _write(field.get_default(call_default_factory=True))
        if recipe is not None and name in recipe:
            text = _write(recipe[name])
        choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
        note = " | ".join(str(c) for c in choices if isinstance(c, str))
        note = "; ".join(filter(None, [note, field.description or "", f"default {default}" if text != default else ""]))
        line = f"{indent}{name}: {text}"
        if note and len(line) + len(note) > LINE:
            rows += [f"{indent}# {part}" for part in textwrap.wrap(note, LINE - len(indent))]
            note = ""
        rows.append(line + (f"  # {note}" if note else ""))
    return rows


def _write(value: Any) -> str:
    """Return a value as YAML, in one line."""
    value = value.as_posix() if isinstance(value, Path) else value
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True)).split("\n")[0]
