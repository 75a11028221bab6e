#!/usr/bin/env bash
# chemfiles 0.10.4: every error of the library derives from BaseException, so `except Exception` lets it through.
#
# A program that reads many trajectories and skips those that fail with `except Exception` ends at the first missing or unreadable
# file, and so do the isolating wrappers of worker pools, web servers and test runners that catch Exception. One expects the error of
# a file that is not there to be an Exception, as Python's documentation asks of all errors that do not end the interpreter.
#
# Output seen (2026-12-01, Python 3.11):
#   ChemfilesError derives from BaseException
#   except Exception let it through: could not open the file at 'not_there.xyz'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'chemfiles==0.10.4'
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import chemfiles

print("ChemfilesError derives from", chemfiles.ChemfilesError.__bases__[0].__name__)
try:
    try:
        chemfiles.Trajectory("not_there.xyz")
    except Exception:
        raise SystemExit("changed: the error is an Exception now")
except chemfiles.ChemfilesError as error:
    print("except Exception let it through:", error)
assert not issubclass(chemfiles.ChemfilesError, Exception)
PY
