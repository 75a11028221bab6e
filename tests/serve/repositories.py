"""Model repositories of one ensemble, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.serve.repository.write import write_repository


def write_model(repository: Path, served: RepositoryModel, **options: Any) -> Path:
    """Add one model to a repository; return its version folder. options : of `write_repository`."""
    [version] = write_repository(repository, [served], **options)
    return version
