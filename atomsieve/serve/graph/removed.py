"""Model kinds of old repositories that are no longer served: the parts of `gfm_pipeline`."""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import AtomSieveError

PARTS = ("prepare", "finish", "pipeline")


class PrepareModel:
    """Placeholder for a `gfm_prepare` or `gfm_finish` on disk: the server loads it, and gets an error with advice."""

    def initialize(self, args: dict[str, str]) -> None:
        """Refuse to be loaded.

        Raises
        ------
        AtomSieveError
            always.
        """
        raise AtomSieveError(removal_advice([args["model_name"]]))


FinishModel = PrepareModel


def find_removed_models(repository: Path) -> list[str]:
    """Return the names of models of a repository that are parts of a pipeline written by an older AtomSieve."""
    found = []
    for prepare in sorted(repository.glob("*_prepare/*/model.py")):
        if "import PrepareModel" in prepare.read_text():
            name = prepare.parent.parent.name.removesuffix("prepare")
            found += [name + part for part in PARTS if (repository / (name + part)).is_dir()]
    return list(dict.fromkeys(found))


def removal_advice(models: list[str]) -> str:
    """Return the error line that names models of a removed kind and the remedy."""
    return (
        f"{', '.join(models)}: pipelines of graph models are no longer served; remove the folders *_prepare, *_finish "
        "and *_pipeline from the repository and send raw structures to the model itself (gfm)"
    )
