"""The documentation says what the code says: fields, columns, statuses, exit codes, verbs, links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from atomsieve import errors
from atomsieve.cli.main import VERBS
from atomsieve.gfm.domain_file import _ARRAYS, _MATTER, _NUMBERS
from atomsieve.predict.domain_flags import Outside
from atomsieve.predict.status import Status
from atomsieve.remote.wire import INPUTS, OUTPUTS
from atomsieve.runs.environment import ALLOCATOR
from atomsieve.runs.output_folder import OutputFolder
from atomsieve.screen.results.columns import COLUMNS
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]


def rows(page: str) -> dict[str, list[str]]:
    """Return the table rows of a page by their first cell."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_every_field_is_documented_as_it_is():
    text = (ROOT / "docs/formats.md").read_text()
    for name, field in FIELDS.items():
        disk = "" if field.disk == field.dtype else f" ({field.disk} on disk)"
        assert f"| `{name}` | `{field.symbol}` | {field.dtype}{disk} | {field.unit} | {field.doc} |" in text


def test_every_format_of_structures_is_documented_as_it_is():
    text = (ROOT / "docs/formats.md").read_text()
    for row in FORMATS.values():
        assert row.describe() in text


def test_every_column_and_status_is_documented_as_it_is():
    text = (ROOT / "docs/formats.md").read_text()
    for c in COLUMNS.values():
        assert f"| `{c.name}` | `{c.dtype}` | {c.unit} | {c.doc} |" in text
    for status in Status:
        assert f"| {status.value} | {status.name} |" in text


def test_every_file_of_a_results_folder_is_documented():
    text = (ROOT / "docs/formats.md").read_text()
    listed = re.findall(r"^      ([\w.]+)/? ", text.partition("    results/\n")[2].partition("\n\n")[0], re.MULTILINE)
    folder = ResultsFolder(Path())
    members = {**vars(OutputFolder), **vars(ResultsFolder)}
    names = [name for name, member in members.items() if isinstance(member, property) and name != "record"]  # run.json
    assert sorted(listed) == sorted(getattr(folder, name).name for name in names)
    assert "[N,H,3] for H heads" in text


def test_every_array_of_a_domain_is_documented_as_it_is():
    table = rows("docs/formats.md")
    for name, (kind, axes) in (_ARRAYS | _MATTER).items():
        if name != "structures":  # a key of calibration.json too
            assert table[name][2] == np.dtype(kind).name, name
            assert table[name][1].count(",") == axes - 1, name
    assert re.findall(r"`(\w+)`", table["numbers"][4]) == list(_NUMBERS)


def test_every_tensor_of_a_request_is_documented_as_it_is():
    text = (ROOT / "docs/protocol.md").read_text()
    for tensor in INPUTS.values():
        optional = " (optional)" if tensor.optional else ""
        row = f"| `{tensor.name}` | `{tensor.symbol}` | {tensor.datatype} | {tensor.unit} | {tensor.doc}{optional} |"
        assert row in text
    for tensor in OUTPUTS.values():
        assert f"| `{tensor.name}` | `{tensor.symbol}` | {tensor.datatype} | {tensor.unit} | {tensor.doc} |" in text


def test_every_status_and_reason_of_an_answer_is_documented_as_it_is():
    text = (ROOT / "docs/protocol.md").read_text()
    for code in (*Status, *Outside):
        assert f"| {code.value} | {code.name} | {code.meaning} |" in text


def test_exit_codes_are_documented():
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {int(first) for first in rows("docs/cli.md") if first.isdigit()}
    said = re.search(r"Exit codes: (.*?)\.", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert codes == {int(n) for n in re.findall(r"\d+", said)}


def test_the_launchers_settings_are_documented():
    table = rows("docs/cli.md")
    for name, value in ALLOCATOR.items():
        assert table[name][1] == value
    assert "OMP_NUM_THREADS" in table


def test_the_readme_names_every_verb():
    text = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert re.search(rf"`(atomsieve )?{verb}\b", text), verb


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target
