"""Time requests that pass tensors through shared memory against the same requests over gRPC, on crystals of 20 atoms.

    python benchmarks/speed/shared_memory.py [--gfm FOLDER] [--sizes 1,8,256] [--calls 40]

The ensemble answers once with structures of elements that it knows, and once with structures of an element that no head
was trained on: then all tensors travel, and nothing is computed. Both ways alternate and must give equal numbers;
what is printed are medians and their ratio. The server's interface for shared memory is open in this run alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from backends import ATOMS, ensemble_of
from ensemble import crystals
from serving import served
from tritonclient.utils import shared_memory

from atomsieve.gfm import read_manifest
from atomsieve.remote.wire import INPUTS, OUTPUTS, request_arrays
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.serve.repository.write import write_repository
from atomsieve.structures import StructureBatch

ASKED = ("status", "energy", "energy_std", "forces", "forces_std", "in_domain")
UNKNOWN = 119
"""Atomic number of an element that no ensemble knows."""

Arrays = dict[str, Any]


@contextmanager
def both_ways(client: Any, batch: StructureBatch) -> Iterator[tuple[Callable[[], Arrays], Callable[[], Arrays]]]:
    """Give two calls that send a batch: over gRPC, and through shared memory."""
    arrays = request_arrays(batch)
    first = {"structure": len(batch), "atom": batch.n_atoms}
    shapes = {n: (1, first[OUTPUTS[n].axis], *OUTPUTS[n].trailing) for n in ASKED}
    sizes = {n: a.nbytes for n, a in arrays.items()}
    sizes |= {f"out_{n}": int(np.prod(shape)) * OUTPUTS[n].dtype.itemsize for n, shape in shapes.items()}
    regions = {}
    for name, size in sizes.items():
        key = f"/atomsieve_benchmark_{name}"
        regions[name] = shared_memory.create_shared_memory_region(name, key, size)
        client.register_system_shared_memory(name, key, size)

    def inputs(place: Callable[[Any, str], None]) -> list[Any]:
        found = [triton.InferInput(n, list(a.shape), INPUTS[n].datatype) for n, a in arrays.items()]
        for tensor, name in zip(found, arrays, strict=True):
            place(tensor, name)
        return found

    def message() -> Arrays:
        sent = inputs(lambda tensor, name: tensor.set_data_from_numpy(arrays[name]))
        answer = client.infer("gfm", sent, outputs=[triton.InferRequestedOutput(n) for n in ASKED])
        return {n: answer.as_numpy(n) for n in ASKED}

    def shared() -> Arrays:
        for name, values in arrays.items():
            shared_memory.set_shared_memory_region(regions[name], [values])
        outputs = [triton.InferRequestedOutput(n) for n in ASKED]
        for output, name in zip(outputs, ASKED, strict=True):
            output.set_shared_memory(f"out_{name}", sizes[f"out_{name}"])
        sent = inputs(lambda tensor, name: tensor.set_shared_memory(name, sizes[name]))
        client.infer("gfm", sent, outputs=outputs)
        read = shared_memory.get_contents_as_numpy
        return {n: np.array(read(regions[f"out_{n}"], OUTPUTS[n].dtype, shapes[n])) for n in ASKED}

    try:
        yield message, shared
    finally:
        for name, region in regions.items():
            client.unregister_system_shared_memory(name)
            shared_memory.destroy_shared_memory_region(region)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gfm", type=Path, help="an ensemble; by default an untrained one of four members")
    parser.add_argument("--sizes", default="1,8,256", help="structures per request")
    parser.add_argument("--calls", type=int, default=40, help="timed calls of each way; fewer of large ones")
    parser.set_defaults(hidden=64, layers=2, members=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        gfm = options.gfm or ensemble_of(options, Path(scratch) / "gfm")
        manifest = read_manifest(gfm)
        head = next(h for h in manifest.heads if h.name == manifest.default_head)
        elements = np.array(sorted(head.references), np.uint8)
        repository = Path(scratch) / "models"
        write_repository(repository, [RepositoryModel("gfm", gfm, Settings(threads=1))])
        print("| structures | computed | gRPC ms | shared memory ms | ratio |\n| --- | --- | --- | --- | --- |")
        with served(repository, 1) as (_, where), triton.InferenceServerClient(f"127.0.0.1:{where.grpc}") as client:
            for size in map(int, options.sizes.split(",")):
                known = crystals(size, ATOMS)
                known = known.replace(numbers=elements[known.numbers % len(elements)])
                unknown = known.replace(numbers=np.full_like(known.numbers, UNKNOWN))
                for computed, batch in (("no", unknown), ("yes", known)):
                    calls = max(3, options.calls if size <= 8 or computed == "no" else options.calls // 6)
                    times: dict[int, list[float]] = {0: [], 1: []}
                    with both_ways(client, batch) as ways:
                        answers = [way() for way in ways]
                        assert all(np.array_equal(answers[0][n], answers[1][n], equal_nan=True) for n in ASKED)
                        for k in range(2 * calls):
                            way = (k + k // 2) % 2  # 0 1 1 0 0 1 1 0
                            began = time.perf_counter()
                            ways[way]()
                            times[way].append(time.perf_counter() - began)
                    plain, shared = (1e3 * statistics.median(times[way]) for way in (0, 1))
                    print(f"| {size} | {computed} | {plain:.2f} | {shared:.2f} | {shared / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
