"""A commented example of a training configuration, made from the schema itself."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml
from pydantic import BaseModel

from atomsieve.models.config import ModelConfig
from atomsieve.models.registry import encoders
from atomsieve.train.config import DataItem, TrainConfig

LINE = 100
"""Width of the example configuration."""


def example_config() -> str:
    """Return a commented example, made from the schema itself."""
    lines = ["# Training configuration. Units: eV, Angstrom, hours. All values but `data` are the defaults.", ""]
    for name, field in TrainConfig.model_fields.items():
        if name == "data":
            lines += ["data:", "  - path: train.bp"]
            lines += _comment_keys(DataItem, "    ", skip={"path"})
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            doc = (annotation.__doc__ or "").strip().split("\n")[0]
            lines += ["", f"# {doc}", f"{name}:", *_comment_keys(annotation, "  ")]
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
    model: type[BaseModel], indent: str, *, only: set[str] | None = None, skip: set[str] | None = None
) -> list[str]:
    """Return a commented line for each key; a comment that would make it long stands above it."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        if field.exclude or (only is not None and name not in only) or (skip is not None and name in skip):
            continue
        default = field.get_default(call_default_factory=True)
        value = default.as_posix() if isinstance(default, Path) else default
        plain = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(plain, default_flow_style=True).split("\n")[0]
        choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
        note = " | ".join(str(c) for c in choices if isinstance(c, str))
        note = "; ".join(filter(None, [note, field.description or ""]))
        line = f"{indent}{name}: {text}"
        if note and len(line) + len(note) > LINE:
            rows += [f"{indent}# {part}" for part in textwrap.wrap(note, LINE - len(indent))]
            note = ""
        rows.append(line + (f"  # {note}" if note else ""))
    return rows
