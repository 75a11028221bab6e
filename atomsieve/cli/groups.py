"""Option groups: a frozen dataclass whose fields are options of a command, taken by the command as one parameter.

    @dataclass(frozen=True)
    class Output:
        out: OutOption = None
        overwrite: OverwriteOption = False

    @expand_groups()
    def verb(results: ResultsArgument, *, output: Output) -> None: ...

The command line sees `--out` and `--overwrite`, in the place of `output`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def expand_groups(
    *, first: Collection[str] = (), without: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return a decorator that replaces each parameter annotated with a dataclass by the fields of that dataclass.

    The decorated function takes keyword arguments alone, as typer passes them. A field may be a group itself.

    first : options that the help lists before all others. without : fields that are no options of this command and keep
    their defaults. defaults : of fields whose default is another one in this command.
    """
    own = dict(defaults or {})

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, type] = {}
        expanded: dict[str, inspect.Parameter] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if is_dataclass(hint := hints[name]):
                assert isinstance(hint, type)
                groups[name] = hint
                options = _options(hint, without, own)
            else:
                options = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint)]
            for option in options:
                assert option.name not in expanded, f"two options are named {option.name}"
                expanded[option.name] = option
        order = sorted(expanded.values(), key=lambda option: option.name not in first)

        def command(**values: Any) -> T:
            given = {name: value for name, value in values.items() if name in hints and name not in groups}
            return function(**given, **{name: _build(group, values) for name, group in groups.items()})

        command.__name__, command.__doc__, command.__module__ = function.__name__, function.__doc__, function.__module__
        command.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
        command.__annotations__ = {option.name: option.annotation for option in order}
        return command

    return decorate


def merge_fields(*groups: Any) -> dict[str, Any]:
    """Return the fields of several groups by name, to be passed on to the options of the library."""
    return {f.name: getattr(group, f.name) for group in groups for f in fields(group)}


def given_options(context: Any) -> set[str]:
    """Return the names of the parameters that the command line of a call sets; defaults are left out."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }


def _options(group: type, without: Collection[str], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Return the options of a group, in the order of its fields."""
    hints = get_type_hints(group, include_extras=True)
    found: list[inspect.Parameter] = []
    for field in fields(group):
        if is_dataclass(hint := hints[field.name]):
            assert isinstance(hint, type)
            found += _options(hint, without, defaults)
        elif field.name not in without:
            default = defaults.get(field.name, _default(field))
            found.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )
    return found


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _build(group: type[T], values: Mapping[str, Any]) -> T:
    """Return a group with the values of its options; options that the command left out keep their defaults."""
    hints = get_type_hints(group, include_extras=True)
    given: dict[str, Any] = {}
    for field in fields(group):  # type: ignore[arg-type]
        if is_dataclass(hint := hints[field.name]):
            assert isinstance(hint, type)
            given[field.name] = _build(hint, values)
        elif field.name in values:
            given[field.name] = values[field.name]
    return group(**given)
