"""The manifest of a dataset folder: fields, sizes and checksums of its parts.

    X.bp/
      manifest.json
      part-00000.r000.bp/ {data.0, md.0, md.idx, mmd.0}
      part-00001.r000.bp/ ...

The metadata files of a part are hashed whole (a damaged one makes ADIOS2 crash or hang); its data file is summed step
by step, so that reading a few structures does not cost reading a terabyte. The manifest carries its own checksum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from atomsieve.errors import DataError
from atomsieve.runs.hashing import hash_json
from atomsieve.runs.output_files import atomic_write
from atomsieve.structures.carried import FILE as CARRIED
from atomsieve.structures.dataset.bp5 import DATA_FILES
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.source import SourceInfo

FORMAT = "atomsieve.structures"
SCHEMA = 3
"""The newest version; a manifest has the lowest one that can say what it says: 2 for parts with `first_id` or `heads`,
3 for parts with carried columns."""
NAME = "manifest.json"

Count = Annotated[int, Field(ge=0)]
Checksum = Annotated[int, Field(ge=0, lt=2**32)]


class _ManifestRow(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FileRow(_ManifestRow):
    """One file of a part: its size, and the sha256 of all files but the data."""

    size: Count
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


class StepRow(_ManifestRow):
    """One step: its sizes, where its bytes end in the data file, their crc32, and the crc32 of its atom counts."""

    structures: Annotated[int, Field(ge=1)]
    atoms: Count
    end: Count
    crc32: Checksum
    counts_crc32: Checksum


class CarriedRow(_ManifestRow):
    """One carried column of a part: its name, and the kind of its values."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    kind: Annotated[str, Field(pattern="^(int|float|flag|text)$")]


class PartRow(_ManifestRow):
    """One BP5 directory.

    A part that was written without knowledge of those before it is corrected when it is read: `first_id` is added to
    its ids, and `heads` maps the sources of the part to those of the dataset. They are left out where they say nothing.
    """

    path: Annotated[str, Field(pattern=r"^part-\d{5,}\.r\d{3,}\.bp$")]
    fields: list[str]
    positions: Annotated[str, Field(pattern="^float(32|64)$")]
    structures: Count
    atoms: Count
    files: dict[str, FileRow]
    steps: list[StepRow]
    first_id: Count = 0
    heads: list[Count] | None = None
    carried: list[CarriedRow] = []

    @property
    def schema_version(self) -> int:
        """The lowest version of the schema that can say this."""
        if self.carried:
            return 3
        return 1 if self.first_id == 0 and self.heads is None else 2

    def without_carried(self) -> PartRow:
        """Return the row of the same part with its structures alone."""
        files = {name: row for name, row in self.files.items() if name in DATA_FILES}
        return self.model_copy(update={"files": files, "carried": []})

    @model_serializer(mode="wrap")
    def _leave_defaults_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out: dict[str, Any] = dump(self)
        if self.first_id == 0:
            del out["first_id"]
        if self.heads is None:
            del out["heads"]
        if not self.carried:
            del out["carried"]
        return out


class SourceRow(_ManifestRow):
    """One source."""

    name: str
    level_of_theory: str


class Totals(_ManifestRow):
    """Sums over all parts."""

    structures: Count
    atoms: Count


class DatasetManifest(_ManifestRow):
    """The whole manifest, less the checksum over it."""

    format: str = FORMAT
    schema_version: int = 1
    created_by: str
    sources: list[SourceRow]
    totals: Totals
    parts: list[PartRow]
    notes: dict[str, str] = {}

    @staticmethod
    def of(parts: list[PartRow], sources: list[SourceInfo], notes: dict[str, str]) -> DatasetManifest:
        """Build the manifest of finished parts."""
        from atomsieve.version import __version__

        return DatasetManifest(
            schema_version=max([1, *(part.schema_version for part in parts)]),
            created_by=f"atomsieve {__version__}",
            sources=[SourceRow(name=s.name, level_of_theory=s.level_of_theory) for s in sources],
            totals=Totals(structures=sum(p.structures for p in parts), atoms=sum(p.atoms for p in parts)),
            parts=parts,
            notes=notes,
        )

    def checksum(self) -> str:
        """Return the sha256 of the manifest's content."""
        return hash_json(self.model_dump())

    def identity(self) -> str:
        """Return the identity of the dataset: a sha256 over its structures, whatever columns they carry."""
        parts = [part.without_carried() for part in self.parts]
        version = max([1, *(part.schema_version for part in parts)])
        return self.model_copy(update={"parts": parts, "schema_version": version}).checksum()

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, durably and whole."""
        content = {**self.model_dump(), "sha256": self.checksum()}
        atomic_write(folder / NAME, json.dumps(content, indent=1).encode())


def is_dataset_folder(folder: Path) -> bool:
    """Return True if the folder holds a manifest of this format, whatever its state."""
    try:
        return f'"{FORMAT}"' in (folder / NAME).read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return False


def load_manifest(folder: Path) -> DatasetManifest:
    """Read and check the manifest, and that every file in it exists with its size. No other file is opened.

    Raises
    ------
    DataError
        naming the first mismatch.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); the dataset must be written again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a structures dataset (format {FORMAT!r} expected)")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise DataError(f"{path} has schema version {version}, this program reads up to {SCHEMA}; upgrade atomsieve")
    stated = content.pop("sha256", None)
    if stated != hash_json(content):
        raise DataError(f"{path} was changed after it was written (its checksum does not fit); restore or rewrite it")
    try:
        manifest = DatasetManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(k) for k in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}, got {str(first['input'])[:60]!r}") from error
    _check_sums(manifest, path)
    _check_files(manifest, folder)
    return manifest


def _check_sums(manifest: DatasetManifest, path: Path) -> None:
    names = [part.path for part in manifest.parts]
    if len(set(names)) != len(names):
        raise DataError(f"{path} lists a part twice")
    for part in manifest.parts:
        if unknown := set(part.fields) - set(FIELDS):
            raise DataError(f"{path}: {part.path} has unknown fields {sorted(unknown)}; upgrade atomsieve")
        if absent := {name for name, field in FIELDS.items() if field.required} - set(part.fields):
            raise DataError(f"{path}: {part.path} does not hold {', '.join(sorted(absent))}; write it again")
        files = (*DATA_FILES, CARRIED) if part.carried else DATA_FILES
        if set(part.files) != set(files):
            raise DataError(f"{path}: {part.path} must list the files {', '.join(files)}")
        for what in ("structures", "atoms"):
            if sum(getattr(step, what) for step in part.steps) != getattr(part, what):
                raise DataError(f"{path}: the {what} of the steps of {part.path} do not add up to those of the part")
        if part.heads is not None and max(part.heads, default=0) >= len(manifest.sources):
            raise DataError(f"{path}: {part.path} names a source that the dataset does not have")
        ends = [step.end for step in part.steps]
        if ends != sorted(ends) or (ends and ends[-1] > part.files["data.0"].size):
            raise DataError(f"{path}: the steps of {part.path} do not fit its data file")
    for what in ("structures", "atoms"):
        if sum(getattr(part, what) for part in manifest.parts) != getattr(manifest.totals, what):
            raise DataError(f"{path}: the {what} of the parts do not add up to the total")


def _check_files(manifest: DatasetManifest, folder: Path) -> None:
    for part in manifest.parts:
        for name, row in part.files.items():
            path = folder / part.path / name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path} is missing; the dataset is not complete, copy or write it again") from error
            if size != row.size:
                raise DataError(f"{path} has {size} bytes, the manifest says {row.size}; copy or write it again")
