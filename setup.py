"""Builds the compiled kernels, one per instruction set, and the parsers of text formats.

Without a C++ compiler the package installs without them.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MESSAGES = ("message", "message_second", "message_pull")
PAINN = ("painn", "painn_tiles", "painn_pairs", "painn_train")
PARTS = ("module", "neighbors", *MESSAGES, *PAINN, "hydragnn_edges", "hydragnn_nodes", "readout")
SOURCES = [f"atomsieve/native/{part}.cpp" for part in PARTS]
TEXT_SOURCES = [
    f"atomsieve/native/{part}.cpp" for part in ("module", "extxyz_read", "extxyz_write", "json_rows", "number_lines")
]
# Reassociation lets sums vectorise; NaN and infinity keep their meaning (no -ffinite-math-only).
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
OPENMP = ["-fopenmp"] if platform.system() == "Linux" else []
X86 = {"base": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]}
VARIANTS = X86 if platform.machine() in ("x86_64", "AMD64") else {"base": []}


class BuildExt(build_ext):
    """Compiles the sources of one extension side by side, on as many cores as this process may use."""

    def build_extensions(self) -> None:
        """Compile and link all extensions."""
        one_by_one = self.compiler.compile
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

        def compile_together(sources: list[str], *given: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(cores) as pool:
                found = pool.map(lambda source: one_by_one([source], *given, **options), sources)
                return [name for names in found for name in names]

        self.compiler.compile = compile_together
        super().build_extensions()


setup(
    cmdclass={"build_ext": BuildExt},
    # Never side by side (build_ext --parallel): variants share their sources, and so the names of their object files.
    ext_modules=[
        Extension(
            f"atomsieve.native._kernels_{name}",
            sources=SOURCES,
            depends=sorted(glob("atomsieve/native/*.h")),
            extra_compile_args=[*FLAGS, *OPENMP, *flags, f"-DMODULE_NAME=_kernels_{name}"],
            extra_link_args=OPENMP,
            language="c++",
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ]
    + [
        Extension(
            "atomsieve.native._text",
            sources=TEXT_SOURCES,
            depends=sorted(glob("atomsieve/native/*.h")),
            # No reassociation here: decimal numbers are converted exactly.
            extra_compile_args=["-O3", "-std=c++17", "-fno-math-errno", "-DMODULE_NAME=_text"],
            language="c++",
            optional=True,
        )
    ],
)
