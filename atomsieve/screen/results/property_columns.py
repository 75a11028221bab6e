"""Columns of `atomsieve properties RESULTS`: moduli and phonons of some rows, from the folder beside the results.

The folder is `<results>.properties`. Its settings.json states the columns, the input and the head; properties.csv holds
the values of the rows for which properties were computed, by position.
"""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.runs.output_files import sibling_path
from atomsieve.screen.results.record import Results

ENDING, SETTINGS, TABLE = ".properties", "settings.json", "properties.csv"
"""Names of the folder and of its files, as `atomsieve.properties.files` writes them."""
KINDS = ("number", "text", "flag")


def list_property_columns(results: Results) -> dict[str, tuple[str, str, str]]:
    """Return kind, unit and line for people of the columns beside a results folder, by name; none if there are none.

    A folder of another input, or without a finished table, is as none.
    """
    folder = sibling_path(results.folder.path, ENDING)
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        same = settings["input"]["identity"] == results.manifest["input"]["identity"]
        known = {str(name): tuple(about) for name, about in settings["columns"].items()}
        head = settings["ensemble"]["head"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if not same or head not in results.labels.heads or not (folder / TABLE).is_file():
        return {}
    return {name: about for name, about in known.items() if len(about) == 3 and about[0] in KINDS}


class PropertyReader:
    """Reads the table once, when the first value is asked for."""

    def __init__(self, results: Results) -> None:
        self._folder = sibling_path(results.folder.path, ENDING)
        self._heads = list(results.labels.heads)
        self._table = cache(self._load)

    def read(self, rows: NDArray[Any], name: str, kind: str) -> NDArray[Any]:
        """Return the values of a column [n]; NaN, "" or False of rows without properties, and of other heads.

        Raises
        ------
        DataError
            if the table is gone, or lacks the column.
        """
        number, places, columns = self._table()
        if name not in columns:
            raise DataError(f"{self._folder / TABLE} has no column {name}; run `atomsieve properties` again")
        found = [
            columns[name][places[position]] if head == number and position in places else ""
            for position, head in zip(rows["position"].tolist(), rows["head"].tolist(), strict=True)
        ]
        if kind == "number":
            return np.array([float(text) if text else np.nan for text in found], np.float64)
        return np.array(found, object) if kind == "text" else np.array([text == "True" for text in found], bool)

    def _load(self) -> tuple[int, dict[int, int], dict[str, list[str]]]:
        """Return the code of the head, the line of each position, and the texts of each column."""
        path = Path(self._folder / TABLE)
        try:
            with open(path, newline="") as file:
                heading, *lines = list(csv.reader(file))
            head = json.loads((self._folder / SETTINGS).read_text())["ensemble"]["head"]
            names = [text.split(" [", 1)[0] for text in heading]
            columns = {name: [line[k] for line in lines] for k, name in enumerate(names)}
            places = {int(position): k for k, position in enumerate(columns["position"])}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise DataError(f"{path} is gone or damaged ({error}); run `atomsieve properties` again") from error
        return self._heads.index(head), places, columns
