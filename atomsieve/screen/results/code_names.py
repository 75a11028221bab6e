"""Names behind the codes in rows: heads, precisions, statuses and the reasons of the domain flag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atomsieve.screen.results.columns import format_value, reasons_text


@dataclass(frozen=True)
class CodeNames:
    """Names behind the codes of the columns `head`, `precision`, `status` and `outside`."""

    heads: list[str]
    precisions: list[str]
    statuses: dict[int, str]
    meanings: dict[str, str]
    reasons: dict[int, str]

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> CodeNames:
        """Return the names that a run.json states."""
        statuses = manifest["statuses"]
        return CodeNames(
            heads=list(manifest["heads"]),
            precisions=list(manifest["precisions"]),
            statuses={int(code): status["name"] for code, status in statuses.items()},
            meanings={status["name"]: status["meaning"] for status in statuses.values()},
            reasons={int(bit): reason["name"] for bit, reason in manifest.get("reasons", {}).items()},
        )

    def status(self, code: int) -> str:
        """Return the name of a status code."""
        return self.statuses.get(int(code), str(code))

    def text(self, name: str, value: Any) -> str:
        """Return one value of a row as text."""
        if name == "head":
            return self.heads[int(value)]
        if name == "precision":
            return self.precisions[int(value)]
        if name == "outside":
            return reasons_text(value, self.reasons)
        return self.status(value) if name == "status" else format_value(name, value)
