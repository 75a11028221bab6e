"""Encoders by name: those of this package and those that other packages bring by entry points.

An encoder of this package is a module of `atomsieve/models/`, or the module `encoder` of a folder there, that defines a
subclass of `atomsieve.models.encoder.Encoder` with a `name`. Another package names its class in its metadata:

    [project.entry-points."atomsieve.encoders"]
    egnn = "their_package.egnn:EGNN"

Nothing else has to be changed or registered. This file knows encoders only as far as configurations need to
(`EncoderPlugin`), so that `ModelConfig` can check the options of an encoder.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from atomsieve.errors import AtomSieveError, UsageError, unknown

GROUP = "atomsieve.encoders"
"""Group of the entry points by which other packages bring encoders."""
PACKAGE = "atomsieve.models"


class EncoderOptions(BaseModel):
    """Options of one encoder alone; an encoder without any uses this class as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderPlugin:
    """The class attributes of an encoder that configurations are checked against.

    Attributes
    ----------
    name : of the encoder, as `model.encoder` in a configuration.
    section : key of its own options in the model configuration; empty stands for `name`.
    Config : the options of that section, a strict pydantic model with defaults.
    bases : radial bases (`model.basis`) that it can use, its default first.
    force_kinds : kinds of forces (`model.forces`) that it can give.
    """

    name: ClassVar[str] = ""
    section: ClassVar[str] = ""
    Config: ClassVar[type[EncoderOptions]] = EncoderOptions
    bases: ClassVar[tuple[str, ...]] = ("bessel", "gaussian")
    force_kinds: ClassVar[tuple[str, ...]] = ("conservative", "direct")

    @classmethod
    def section_name(cls) -> str:
        """Return the key of its options in the model configuration."""
        return cls.section or cls.name


def find_encoder(name: str) -> type[EncoderPlugin]:
    """Return the encoder class of a name.

    Raises
    ------
    UsageError
        for a name that no package declares (with the nearest one), or that two packages declare.
    AtomSieveError
        if its entry point cannot be loaded or gives no encoder.
    """
    built_in, installed = _find_built_in(), _find_installed(tuple(sys.path))
    points = installed.get(name, ())
    if name not in built_in and not points:
        raise unknown("encoder", name, {*built_in, *installed})
    origins = [f"{PACKAGE} ({built_in[name].__module__})"] if name in built_in else []
    origins += [_describe(point) for point in points]
    if len(origins) > 1:
        raise UsageError(f"encoder {name!r} is declared by {' and by '.join(origins)}; uninstall all but one")
    return built_in[name] if name in built_in else _load(points[0])


def encoder_names() -> list[str]:
    """Return the names of all encoders, sorted; entry points are not loaded for it."""
    return sorted({*_find_built_in(), *_find_installed(tuple(sys.path))})


def encoders() -> dict[str, type[EncoderPlugin]]:
    """Return all encoders by name; errors as of `find_encoder`."""
    return {name: find_encoder(name) for name in encoder_names()}


def owner_of_section(key: str) -> str | None:
    """Return the name of the encoder whose options stand under `key` in a model configuration, None if there is none.

    Of encoders of other packages it knows those whose section has the encoder's own name.
    """
    for name, plugin in _find_built_in().items():
        if plugin.Config is not EncoderOptions and plugin.section_name() == key:
            return name
    return key if key in _find_installed(tuple(sys.path)) else None


@functools.cache
def _find_built_in() -> dict[str, type[EncoderPlugin]]:
    """Return the encoders that modules and folders of `atomsieve.models` declare, by name."""
    found: dict[str, type[EncoderPlugin]] = {}
    for module in _modules():
        for _, plugin in inspect.getmembers(importlib.import_module(module), inspect.isclass):
            if issubclass(plugin, EncoderPlugin) and plugin.name and plugin.__module__ == module:
                if plugin.name in found:
                    raise UsageError(
                        f"encoder {plugin.name!r} is declared by {found[plugin.name].__module__} and by {module}"
                    )
                found[plugin.name] = plugin
    return found


def _modules() -> Iterator[str]:
    """Yield the modules of `atomsieve.models` that may declare an encoder."""
    for entry in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__, f"{PACKAGE}."):
        if not entry.ispkg:
            yield entry.name
        elif find_spec(f"{entry.name}.encoder") is not None:
            yield f"{entry.name}.encoder"


@functools.lru_cache(maxsize=4)
def _find_installed(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of other packages by name; `path` is `sys.path`, on which the answer depends."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _describe(point: EntryPoint) -> str:
    owner = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
    return f"{owner} ({point.value})"


def _load(point: EntryPoint) -> type[EncoderPlugin]:
    """Load the encoder that an entry point names."""
    try:
        plugin = point.load()
    except Exception as error:  # whatever the other package does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise AtomSieveError(
            f"encoder {point.name!r} of {_describe(point)} cannot be loaded ({reason}); repair or uninstall it"
        ) from error
    if not (isinstance(plugin, type) and issubclass(plugin, EncoderPlugin)):
        raise AtomSieveError(
            f"encoder {point.name!r} of {_describe(point)} is no subclass of {PACKAGE}.encoder.Encoder; repair or "
            "uninstall that package"
        )
    if plugin.name != point.name:
        raise AtomSieveError(
            f"encoder {point.name!r} of {_describe(point)} calls itself {plugin.name!r}; entry point and class must "
            "have one name"
        )
    return plugin
