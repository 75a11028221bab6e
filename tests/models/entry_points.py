"""A folder that looks like an installed package with entry points for encoders."""

from __future__ import annotations

from pathlib import Path

from atomsieve.models.registry import GROUP

TOY = {"toy": "tests.models.toy_encoder:ToyEncoder", "pooled_toy": "tests.models.toy_encoder:PooledToy"}


def install(folder: Path, points: dict[str, str], package: str = "toy_package") -> Path:
    """Write the metadata of a package that declares these encoders; the folder is to be put on the path."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    rows = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{rows}\n")
    return folder
