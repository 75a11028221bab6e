"""Opening the input of a screening, and the predictor that evaluates it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.devices import choose_device, device_kind
from atomsieve.errors import AtomSieveError, DataError, UsageError, unknown
from atomsieve.gfm.manifest import find_folder, read_head_names
from atomsieve.predict.interface import AnyPredictor
from atomsieve.runs.mpi import Communicator, collective
from atomsieve.screen.cascade.predictors import CascadePredictor, load_cascade
from atomsieve.screen.engine.cuda_streams import StreamedPredictor
from atomsieve.screen.engine.servers import RemoteOptions, check_served_alike, connect_servers
from atomsieve.screen.options import ALL_HEADS, MIXED, ScreenOptions
from atomsieve.screen.results.chunks import Chunks, chunk_size
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.run_record import recorded_backend
from atomsieve.structures import StructureReader
from atomsieve.structures.conversion.copy_record import DatasetCopy
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, STDIN, check_input, ensure_dataset

if TYPE_CHECKING:
    from rich.console import Console

MOST_HEADS = 255
"""The column `head` is one byte."""


@dataclass(frozen=True)
class ScreenInput:
    """The input of a run.

    Attributes
    ----------
    path : what the user named. reader : of its structures. chunks : how they are cut.
    copy : the dataset that was opened, where `path` is a file that was converted. reading : how that was done.
    """

    path: Path
    reader: StructureReader
    chunks: Chunks
    copy: DatasetCopy | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)


def check_call(
    candidates: Path, ensemble: str | Path | None, options: ScreenOptions, folder: ResultsFolder
) -> str | Path | None:
    """Check paths and names before anything is converted, loaded or written; `ensemble` is None with servers.

    Returns
    -------
    the ensemble folder: the given one, or the only one inside, such as that of a training.

    Raises
    ------
    AtomSieveError
        if the candidates or the ensemble are not there, or the results folder holds other files; UsageError for an
        unknown head.
    """
    check_input(candidates)
    if not options.keep_converted and str(candidates) == STDIN:
        raise UsageError("standard input cannot be read again, so its structures are kept; leave out --drop-converted")
    if folder.path.is_dir() and not folder.is_ours() and folder.list_foreign():
        raise AtomSieveError(f"{folder.path} holds other files than {folder.contents}; choose another {folder.option}")
    if ensemble is None:
        return None
    if (inside := find_folder(ensemble)) != Path(ensemble):
        ensemble = inside
    names = read_head_names(ensemble)
    if options.head is not None and options.head not in (*names, ALL_HEADS, MIXED):
        raise unknown("head", options.head, [*names, ALL_HEADS])
    return ensemble


def convert_candidates(
    comm: Communicator,
    candidates: Path,
    folder: ResultsFolder,
    options: ScreenOptions,
    reading: ReadOptions,
    console: Console | None,
) -> DatasetCopy | None:
    """Convert candidates that are no dataset into one beside the results, unless that was done before; all ranks do so.

    Structures that no model accepts are kept, so that each gets a row. Labels are left out. None for a dataset.
    """
    made = ensure_dataset(
        candidates,
        folder.path.absolute().parent / FOLDER,
        reading,
        labels=False,
        keep_bad=True,
        owner="" if options.keep_converted else folder.path.name,  # a copy that is removed is nobody else's
        console=console,
        comm=comm,
    )
    return made if made.is_copy else None


@collective
def open_input(
    comm: Communicator,
    path: Path,
    options: ScreenOptions,
    reader: StructureReader | None,
    stack: ExitStack,
    copy: DatasetCopy | None = None,
    reading: ReadOptions | None = None,
    recorded: Chunks | None = None,
) -> ScreenInput:
    """Open the input until `stack` is left, and cut it into chunks; `reader` is taken instead of opening `path`.

    copy, reading : the dataset that `path` was converted into, and how. recorded : chunks of an earlier part of the
        run, which are kept where the options give no size.

    Raises
    ------
    DataError
        if it holds no structures, or cannot be read.
    """
    if reader is None:
        from atomsieve.structures import open_structures

        reader = stack.enter_context(open_structures(path if copy is None else copy.path, copies=options.copies))
    n = min(len(reader), options.limit or len(reader))
    if n == 0:
        raise DataError(f"{path} holds no structures")
    if options.chunk_size is None and recorded is not None and recorded.n == n:
        chunks = recorded
    elif options.chunk_size is not None:
        chunks = Chunks(n, options.chunk_size)
    else:
        chunks = Chunks(n, chunk_size(n, reader.n_atoms / len(reader)), taper=True)
    return ScreenInput(path, reader, chunks, copy, reading or ReadOptions())


@dataclass(frozen=True)
class GivenPredictor:
    """Gives another process a predictor that the caller of the run brought."""

    predictor: AnyPredictor

    def __call__(self) -> AnyPredictor:
        """Return the predictor."""
        return self.predictor


@dataclass(frozen=True)
class PredictorLoader:
    """Loads an ensemble folder in another process as this rank did; `options.device` names the very device."""

    ensemble: Path
    options: ScreenOptions
    backend: str

    def __call__(self) -> AnyPredictor:
        """Return the predictor."""
        return load_predictor(self.ensemble, self.options, self.backend)


@dataclass(frozen=True)
class ScreenModel:
    """The predictor of a run.

    Attributes
    ----------
    predictor : evaluates batches. heads : those to screen by.
    reload : gives another process the same predictor.
    ensemble : the folder, None where servers hold the ensemble.
    loaded : this run loaded the predictor, and this process computes.
    backend_choice : the backend and why it was chosen, None where nothing was to be chosen.
    pair : of a cascade, its two predictors; None without a cascade.
    """

    predictor: AnyPredictor
    heads: list[str]
    reload: GivenPredictor | PredictorLoader
    ensemble: str | Path | None
    loaded: bool = False
    backend_choice: str | None = None
    pair: CascadePredictor | None = None


def open_model(
    comm: Communicator,
    ensemble: str | Path | None,
    options: ScreenOptions,
    folder: ResultsFolder,
    *,
    served: RemoteOptions | None,
    predictor: AnyPredictor | None,
    overwrite: bool,
    stack: ExitStack,
) -> ScreenModel:
    """Return the predictor of a run, open until `stack` is left: as given, on servers, or loaded from its folder.

    Raises
    ------
    UsageError
        for an unknown head, or options that the predictor does not go with. Errors of `Predictor.load`, too.
    """
    if predictor is not None:
        return comm.run_on_all(_take_given, predictor, ensemble, options)
    if served is not None:
        remote = comm.run_on_all(connect_servers, served, ensemble, options, stack, comm.size)
        check_served_alike(comm, remote)
        return comm.run_on_all(_take_given, remote, ensemble, options)
    backend, why = comm.run_on_first(resolve_backend, folder, ensemble, options, overwrite)
    return comm.run_on_all(_load, comm.local_rank, ensemble, options, backend, why, stack)


def _take_given(predictor: AnyPredictor, ensemble: str | Path | None, options: ScreenOptions) -> ScreenModel:
    pair = predictor if isinstance(predictor, CascadePredictor) else None
    if options.cascade is not None and pair is None:
        raise UsageError(f"cascade {options.cascade!r}: the given predictor has one precision; give a CascadePredictor")
    heads = resolve_heads(predictor, options.head)
    return ScreenModel(predictor, heads, GivenPredictor(predictor), ensemble, pair=pair)


def _load(
    local_rank: int, ensemble: str | Path | None, options: ScreenOptions, backend: str, why: str, stack: ExitStack
) -> ScreenModel:
    folder = require_ensemble(ensemble)
    loaded = load_predictor(folder, options, backend, local_rank)
    predictor: AnyPredictor = loaded
    if device_kind(loaded.device) == "cuda":
        predictor = stack.enter_context(StreamedPredictor(loaded))
    return ScreenModel(
        predictor,
        resolve_heads(predictor, options.head),
        PredictorLoader(Path(folder).absolute(), replace(options, device=str(loaded.device)), loaded.backend),
        folder,
        loaded=True,
        backend_choice=None if options.backend == "native" else f"{backend} ({why})",
        pair=loaded if isinstance(loaded, CascadePredictor) else None,
    )


def load_predictor(ensemble: str | Path, options: ScreenOptions, backend: str, local_rank: int = 0) -> AnyPredictor:
    """Load the ensemble folder as the options say; `local_rank` chooses among the GPUs of a machine."""
    from atomsieve.predict import Predictor

    head = None if options.head in (None, ALL_HEADS) else options.head
    place = choose_device(options.device, local_rank)
    if place.type == "cpu":
        import torch

        torch.set_num_threads(options.threads)
    found = Predictor.load(ensemble, head=head, precision=options.precision, device=str(place), backend=backend)
    return found if options.cascade is None else load_cascade(ensemble, found, options)


def require_ensemble(ensemble: str | Path | None) -> str | Path:
    """Return the ensemble folder.

    Raises
    ------
    UsageError
        if none is given.
    """
    if ensemble is None:
        raise UsageError("no ensemble given; name its folder with --ensemble, or a server with --endpoint")
    return ensemble


def resolve_backend(
    folder: ResultsFolder, ensemble: str | Path | None, options: ScreenOptions, overwrite: bool
) -> tuple[str, str]:
    """Return the backend and why: `auto` keeps to that of an earlier part of the run, since last bits differ."""
    gfm = require_ensemble(ensemble)
    if options.backend != "auto":
        return options.backend, "as asked"
    recorded = None if overwrite else recorded_backend(folder)
    if recorded is not None:
        return recorded, "as in the earlier part of this run"
    from atomsieve.gfm import read_manifest
    from atomsieve.predict.backends.select import fastest

    return fastest(gfm, read_manifest(gfm), options.precision, choose_device(options.device))


def resolve_heads(predictor: AnyPredictor, wanted: str | None) -> list[str]:
    """Return the heads to screen by: the named one, all, or the default head.

    Raises
    ------
    UsageError
        for a head that the predictor does not have, or too many of them.
    """
    if wanted == ALL_HEADS:
        if len(predictor.heads) > MOST_HEADS:
            raise UsageError(f"head all: {len(predictor.heads)} heads, a run takes {MOST_HEADS}; screen by one head")
        return list(predictor.heads)
    head = wanted or predictor.default_head
    choices = predictor.capabilities.choices
    if head not in choices:
        raise unknown("head", head, [*choices, ALL_HEADS])
    return [head]
