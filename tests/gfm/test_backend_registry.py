"""The registry of backends: every row names modules that are there, and every choice of the program comes from it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from pydantic import ValidationError

from atomsieve.errors import UsageError
from atomsieve.gfm.backends import BACKEND_CHOICES, BACKENDS, FORMATS, SERVED_BACKENDS, check_backend, holds_code
from atomsieve.models.precision import PRECISIONS, check_precision
from atomsieve.serve.model.settings import Settings


@pytest.mark.parametrize("spec", BACKENDS.values(), ids=BACKENDS)
def test_a_row_names_modules_with_the_functions_that_are_called(spec):
    assert callable(import_module(spec.opener).open_backend)
    if spec.writer is not None:
        writer = import_module(spec.writer)
        assert callable(writer.write) and callable(writer.open_session)


def test_names_are_unique_and_the_reference_is_no_format():
    assert len(set(SERVED_BACKENDS)) == len(BACKENDS)
    assert set(FORMATS) == set(BACKENDS) - {"native"}
    assert BACKEND_CHOICES[-1] == "auto"


def test_files_of_an_unknown_format_count_as_programs():
    assert not holds_code("onnx")
    assert holds_code("torchscript") and holds_code("pt2") and holds_code("pickle")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="torchscript"):
        check_backend("torchscrip")
    with pytest.raises(UsageError, match="bf16"):
        check_precision("bf15")


@pytest.mark.parametrize(("name", "value"), [("backend", "onx"), ("precision", "fp16")])
def test_settings_of_a_served_model_refuse_what_is_in_no_list(name, value):
    with pytest.raises(ValidationError, match="must be one of"):
        Settings.model_validate({name: value})


def test_the_lists_need_no_torch():
    program = (
        "import sys, atomsieve.gfm.backends, atomsieve.models.precision, atomsieve.screen.options\n"
        "import atomsieve.cli.common\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert PRECISIONS == ("fp64", "fp32", "bf16")
