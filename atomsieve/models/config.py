"""The configuration of a model (ModelConfig) and the description of each of its heads (HeadSpec)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from atomsieve.models.registry import EncoderOptions, find_encoder, owner_of_section

Kind = Literal["deep", "shallow"]
"""Kind of ensemble: its members are networks, or decoders on one encoder."""
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_ENCODER = "painn"
LEGACY_SECTION = "hydragnn"
"""Configurations of encoders without options end with this key, null, as all did before options had a section each:
files and the identities of ensembles keep their bytes."""
Options = TypeVar("Options", bound=EncoderOptions)


class ModelConfig(BaseModel):
    """Architecture of one member; all members of an ensemble share it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(DEFAULT_ENCODER, description="registered encoder")
    hidden: int = Field(64, gt=0, description="channels F; multiples of 16 use the compiled kernels")
    layers: int = Field(3, gt=0, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, le=20, description="neighbours are closer than this, Angstrom")
    n_basis: int = Field(7, gt=0, le=128, description="radial functions; one more channel carries the filter's bias")
    basis: Literal["bessel", "gaussian", "sinc"] = Field(
        "bessel", description="radial basis; sinc, with a cosine cutoff, goes with hydragnn_painn alone"
    )
    forces: Literal["conservative", "direct"] = Field(
        "conservative", description="minus the gradient of the energy, or a separate equivariant head"
    )
    charge_spin: bool = Field(
        False, description="condition on total charge and multiplicity; then every structure needs both"
    )
    max_neighbors: int | None = Field(None, gt=0, description="keep only the k nearest; null keeps all (recommended)")
    head_hidden: int = Field(32, gt=0, description="hidden width of each energy head")
    typical_neighbors: float = Field(
        30.0, gt=0, description="typical number of neighbours; sets the initial size of messages"
    )
    repulsion: Literal["none", "zbl"] = Field(
        "none", description="of atoms far closer than covalent radii; zbl: of screened nuclei, whatever the weights are"
    )
    options: EncoderOptions = Field(
        default_factory=EncoderOptions,
        exclude=True,
        description="options of the encoder alone; in files they stand in a section named by the encoder",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_section(cls, given: Any) -> Any:
        """Check the section of the encoder and put it into `options`; refuse sections of other encoders."""
        if not isinstance(given, dict) or not isinstance(given.get("encoder", DEFAULT_ENCODER), str):
            return given
        name = given.get("encoder", DEFAULT_ENCODER)
        plugin = find_encoder(name)
        rest = {"basis": plugin.bases[0], **given}
        options, key = rest.pop("options", None), plugin.section_name()
        if options is not None and type(options) is not plugin.Config:
            raise _section_error([InitErrorDetails(type="extra_forbidden", loc=("options",), input=options)])
        for other in [k for k in rest if k not in cls.model_fields and k != key]:
            owner = owner_of_section(other)
            if owner is not None and rest.pop(other) is not None:
                raise ValueError(f"the section {other} goes with encoder {owner}, got encoder {name!r}")
        section = rest.pop(key, None)
        if section is not None or options is None:
            options = _check_section(plugin.Config, key, {} if section is None else section)
        return {**rest, "options": options}

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> ModelConfig:
        plugin = find_encoder(self.encoder)
        if self.basis not in plugin.bases:
            raise ValueError(
                f"encoder {self.encoder} and basis {self.basis} do not go together; allowed: {', '.join(plugin.bases)}"
            )
        if self.forces not in plugin.force_kinds:
            raise ValueError(
                f"encoder {self.encoder} has {' or '.join(plugin.force_kinds)} forces, got {self.forces!r}"
            )
        return self

    @model_serializer(mode="wrap")
    def _write_section(self, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Write the options as the section of their encoder; leave out keys that older files do not have."""
        flat: dict[str, Any] = write(self)
        if self.repulsion == "none":
            flat.pop("repulsion", None)
        if not type(self.options).model_fields:
            return {**flat, LEGACY_SECTION: None}
        return {**flat, find_encoder(self.encoder).section_name(): self.options.model_dump(mode=info.mode)}

    def options_of(self, kind: type[Options]) -> Options:
        """Return the options of the encoder, which are of this class."""
        if not isinstance(self.options, kind):
            raise TypeError(f"encoder {self.encoder} has options {type(self.options).__name__}, not {kind.__name__}")
        return self.options


def section_keys(key: str) -> list[str]:
    """Return the keys that the section `key` of a model configuration takes; none if no encoder owns it."""
    owner = owner_of_section(key)
    return [] if owner is None else list(find_encoder(owner).Config.model_fields)


def _check_section(kind: type[EncoderOptions], key: str, section: Any) -> EncoderOptions:
    """Return the options in a section, or raise pydantic's error with the section in its places."""
    try:
        return kind.model_validate(section)
    except ValidationError as error:
        raise _section_error(
            [
                InitErrorDetails(
                    type=found["type"]
                    if "ctx" not in found or "error" not in found["ctx"]
                    else PydanticCustomError("value_error", "{reason}", {"reason": found["msg"]}),
                    loc=(key, *found["loc"]),
                    input=found["input"],
                    ctx=found.get("ctx", {}),
                )
                for found in error.errors()
            ]
        ) from error


def _section_error(details: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("ModelConfig", details)


class HeadSpec(BaseModel):
    """One source at one level of theory, and the elements in its training data.

    Attributes
    ----------
    references : energy of one atom of each element, eV; total energy = their sum + the prediction of the network.
    scale : eV; the network's output per atom is multiplied by it.
    elements : number of atoms of each element seen in training.
    statistics : label statistics for people (counts, means, force norms).
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    level_of_theory: str
    references: dict[int, float]
    scale: float = Field(gt=0)
    elements: dict[int, int]
    statistics: dict[str, Any] = Field(default_factory=dict)
