"""Time a served ensemble against the same ensemble in this process, on periodic crystals of 20 atoms.

    python benchmarks/speed/serving.py [--gfm FOLDER] [--precision fp32] [--backend native] [--threads N]
        [--instances 1]

Starts a server of its own on free ports. This script and the server run under the allocator settings of the `atomsieve`
command and with the same number of threads. Each round measures the process here and then every kind of request, so
that other work on the machine meets both; what is printed are medians over the rounds, and ratios within each round.
A request is timed from a batch of structures to a Prediction of energies, forces and spreads: tensors are packed and
unpacked by the clients, which are threads of this process. The first request of each point is not counted.

The last columns are of the server's own metrics: requests that it computed together, and what its Python process needs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from backends import ATOMS, ensemble_of
from ensemble import crystals

from atomsieve.graphs import edge_budget_estimate
from atomsieve.predict import Prediction, Predictor
from atomsieve.predict.packing import BUDGETS, pack
from atomsieve.remote.transport import EndpointError, Transport
from atomsieve.remote.url import parse_url
from atomsieve.remote.wire import outputs_for, prediction_from_arrays, request_arrays
from atomsieve.runs.environment import ALLOCATOR
from atomsieve.serve.installation import assemble_backends, find_server
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.serve.repository.write import write_repository
from atomsieve.serve.server.process import (
    ServerOptions,
    TritonProcess,
    find_free_ports,
    server_command,
    server_environment,
)
from atomsieve.structures import StructureBatch

WANT = ("energy", "forces", "spread")
CLIENTS = {1: (1, 4, 32), 8: (1, 4, 32), 256: (1, 4), 2048: (1,)}
"""Clients by size of request; with more, requests only wait for each other."""
LOCAL = "in process"
DISTINCT = 4
"""Batches of a size that take turns."""


@dataclass
class Point:
    """What was measured of one kind of request, round by round."""

    size: int
    protocol: str
    clients: int
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def timed(call: Callable[[int], object], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Call from as many threads, each again and again for so long; return calls per second, and seconds of each."""
    begin = threading.Barrier(clients + 1)

    def client(number: int) -> list[float]:
        try:
            call(number)
            begin.wait()
        except BaseException:
            begin.abort()
            raise
        own: list[float] = []
        end = time.perf_counter() + seconds
        while not own or time.perf_counter() < end:
            began = time.perf_counter()
            call(number + len(own))
            own.append(time.perf_counter() - began)
        return own

    with ThreadPoolExecutor(clients) as pool:
        waiting = [pool.submit(client, n) for n in range(clients)]
        try:
            with suppress(threading.BrokenBarrierError):  # the client that broke it says why
                begin.wait()
            began = time.perf_counter()
            times = [one for future in waiting for one in future.result()]
        except BaseException:  # asked to end: who still waits for the others would wait for ever
            begin.abort()
            raise
    return len(times) / (time.perf_counter() - began), times


@contextmanager
def served(repository: Path, threads: int) -> Iterator[tuple[TritonProcess, ServerOptions]]:
    """Run a server of a repository."""
    server = find_server()
    grpc, http, metrics = find_free_ports(3)
    options = ServerOptions(repository, ("gfm",), grpc=grpc, http=http, metrics=metrics)
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        line = server_command(server, options, assemble_backends(server, Path(scratch)))
        process = TritonProcess(line, server_environment(server, threads), lines.append)
        try:
            with Transport(parse_url(f"grpc://127.0.0.1:{grpc}")) as transport:
                for _ in range(600):
                    try:
                        if transport.is_ready("gfm"):
                            break
                    except EndpointError:
                        pass
                    if process.exit_code is not None:
                        raise SystemExit("\n".join(lines[-20:]))
                    time.sleep(0.1)
                else:
                    raise SystemExit("the server is not ready after a minute:\n" + "\n".join(lines[-20:]))
            yield process, options
        finally:
            process.stop(options.exit_seconds + 10)  # killed, it would leave shared memory behind


def counted(options: ServerOptions) -> tuple[float, float]:
    """Return requests, and groups of requests that were computed together, since the start of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{options.metrics}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = [0.0, 0.0]
    for line in lines:
        for k, name in enumerate(("nv_inference_count", "nv_inference_exec_count")):
            if line.startswith(name + "{"):
                found[k] += float(line.rpartition(" ")[2])
    return found[0], found[1]


def memory(pid: int) -> dict[str, float]:
    """Return the memory, now and at its peak, of the server and of its Python processes, MiB."""
    found = {}
    for name, one in family(pid).items():
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith(("VmRSS", "VmHWM")):
                found[f"{name} {line[2:5]}"] = int(line.split()[1]) / 1024
    return found


def family(pid: int) -> dict[str, int]:
    """Return the process ids of a server and its Python processes, by name."""
    rows = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout.split("\n")
    stubs = [int(r.split()[0]) for r in rows[1:] if r.split()[1:2] == [str(pid)]]
    return {"tritonserver": pid} | {f"stub {k}": stub for k, stub in enumerate(stubs)}


def processor(pids: Iterable[int]) -> float:
    """Return the CPU seconds that this process and others have used."""
    ticks = [sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) for pid in pids]
    return time.process_time() + sum(ticks) / os.sysconf("SC_CLK_TCK")


class Bench:
    """Batches, the predictor of this process, and the endpoint."""

    def __init__(self, predictor: Predictor, options: ServerOptions, sizes: list[int]) -> None:
        self.predictor, self.options = predictor, options
        self._urls = {p: f"{p}://127.0.0.1:{port}" for p, port in (("grpc", options.grpc), ("http", options.http))}
        self._outputs = outputs_for(WANT, predictor.kind)
        elements = np.array(predictor.elements(predictor.head), np.uint8)
        rng = np.random.default_rng(0)
        self._batches: dict[int, list[StructureBatch]] = {}
        for size in sizes:
            some = [crystals(size, ATOMS, seed) for seed in range(DISTINCT)]
            self._batches[size] = [b.replace(numbers=rng.choice(elements, b.n_atoms)) for b in some]

    def measure(self, point: Point, seconds: float, pids: list[int]) -> None:
        """Measure one kind of request once."""
        before, used = counted(self.options), processor(pids)
        timer = self.local if point.protocol == LOCAL else self.remote
        rate, times = timer(point, seconds)
        after = counted(self.options)
        warm = point.clients  # calls that are not timed
        point.cpu.append((processor(pids) - used) / (len(times) + warm) / point.size)
        point.rates.append(rate)
        point.latencies += times
        if point.protocol != LOCAL:
            point.together.append((after[0] - before[0]) / max(after[1] - before[1], 1))

    def local(self, point: Point, seconds: float) -> tuple[float, list[float]]:
        """Time the predictor of this process, on pieces as the server and `screen run` cut them.

        One call on all of a large batch is slower.
        """
        some, budget = self._batches[point.size], BUDGETS["cpu"]

        def call(k: int) -> None:
            batch = some[k % DISTINCT]
            pieces = pack(edge_budget_estimate(batch, self.predictor.cutoff), batch.counts, *budget)
            for piece in pieces:
                self.predictor(batch if len(pieces) == 1 else batch.take(piece), WANT)

        return timed(call, 1, seconds)

    def remote(self, point: Point, seconds: float) -> tuple[float, list[float]]:
        """Time the endpoint."""
        some, url = self._batches[point.size], parse_url(self._urls[point.protocol])
        shared = point.protocol == "grpc"  # a connection over HTTP belongs to one thread
        own = threading.local()
        opened = [Transport(url)] if shared else []

        def call(k: int) -> Prediction:
            if shared:
                transport = opened[0]
            else:
                if not hasattr(own, "transport"):
                    own.transport = Transport(url, connections=1, seconds=600)
                transport = own.transport
            found = transport.infer("gfm", request_arrays(some[k % DISTINCT]), self._outputs, seconds=600)
            return prediction_from_arrays(found, self.predictor.head, frozenset())

        try:
            return timed(call, point.clients, seconds)
        finally:
            for transport in opened:
                transport.close()

    def agree(self) -> float:
        """Return the largest difference of an energy between here and there, eV per atom."""
        batch = next(iter(self._batches.values()))[0]
        with Transport(parse_url(self._urls["grpc"])) as transport:
            there = transport.infer("gfm", request_arrays(batch), ["energy", "status"])
        here = self.predictor(batch, WANT)
        assert (there["status"] == here.status).all()
        return float(np.nanmax(np.abs(there["energy"] - here.energy) / batch.counts))


def cost_of_lines(lines: int = 2000) -> float:
    """Return the microseconds that a log line per batch costs, written into a pipe that another process reads."""
    code = (
        "import sys,time\nfrom atomsieve.serve.model.triton_model import log\nn=int(sys.argv[1])\n"
        "b=time.perf_counter()\n"
        "for k in range(n): log('batch', model='gfm', requests=32, structures=32, atoms=640, evaluations=1,"
        " seconds=0.012345, status={'OK': 32}, errors={})\n"
        "print((time.perf_counter()-b)/n*1e6)"
    )
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        done = subprocess.run(
            [sys.executable, "-c", code, str(lines)], stdout=subprocess.PIPE, stderr=reader.stdin, text=True, check=True
        )
    return float(done.stdout)


def run(arguments: argparse.Namespace, gfm: Path, work: Path) -> None:
    """Measure and print."""
    settings = Settings(precision=arguments.precision, backend=arguments.backend, threads=arguments.threads)
    write_repository(work / "repository", [RepositoryModel("gfm", gfm, settings)], instances=arguments.instances)
    predictor = Predictor.load(gfm, precision=arguments.precision, backend=arguments.backend)
    sizes = [int(n) for n in arguments.sizes.split(",")]
    clients = {n: CLIENTS.get(n, (1, 4)) for n in sizes}
    if arguments.clients:
        clients = dict.fromkeys(sizes, tuple(int(n) for n in arguments.clients.split(",")))
    points = [Point(n, p, c) for n in sizes for p in arguments.protocols.split(",") for c in clients[n]]
    local = {n: Point(n, LOCAL, 1) for n in sizes}
    with served(work / "repository", arguments.threads) as (process, options):
        bench, pids = Bench(predictor, options, sizes), list(family(process.pid).values())
        print(f"largest difference of an energy here and there: {bench.agree():.1e} eV/atom", flush=True)
        with suppress(KeyboardInterrupt):  # what there is by then is printed
            for _ in range(arguments.rounds):
                for size in sizes:
                    for point in (local[size], *(p for p in points if p.size == size)):
                        bench.measure(point, arguments.seconds, pids)
        used = memory(process.pid)
    table(points, local)
    print("\n" + json.dumps({name: round(value) for name, value in used.items()}) + " MiB")
    print(f"a log line per batch: {cost_of_lines():.0f} us")


def table(points: list[Point], local: dict[int, Point]) -> None:
    """Print the medians in markdown."""
    print(
        "\n| structures | route | clients | requests/s | structures/s | against in process | p50 ms | p99 ms | "
        "CPU ms/structure | together |"
    )
    print("| --- " * 10 + "|")
    for size, base in local.items():
        for point in (p for p in (base, *points) if p.size == size and p.rates):
            rate = statistics.median(point.rates)
            ratios = [a / b for a, b in zip(point.rates, base.rates, strict=False) if b]
            p50, p99 = np.percentile(np.array(point.latencies) * 1e3, [50, 99])
            together = f"{statistics.median(point.together):.1f}" if point.together else ""
            print(
                f"| {size} | {point.protocol} | {point.clients} | {rate:.4g} | {rate * size:.4g} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {p50:.3g} | {p99:.3g} | "
                f"{statistics.median(point.cpu) * 1e3:.2f} | {together} |"
            )


def main() -> None:
    """Start again under the settings of the launcher, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gfm", type=Path, help="an ensemble folder; by default an untrained ensemble is made")
    parser.add_argument("--hidden", type=int, default=64, help="of the untrained ensemble")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--sizes", default="1,8,256,2048", help="structures of a request")
    parser.add_argument("--clients", default="", help="by default 1,4,32 for small requests, fewer for large ones")
    parser.add_argument("--protocols", default="grpc,http")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each point in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    wanted = ALLOCATOR | {"OMP_NUM_THREADS": str(arguments.threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)  # noqa: S606
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background, too: what there is by then is printed
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="atomsieve-serving-") as name:
        gfm = arguments.gfm or ensemble_of(arguments, Path(name) / "gfm")
        made = "" if arguments.gfm else f", untrained: {arguments.members} members, hidden {arguments.hidden}"
        print(
            f"{arguments.precision}, {arguments.backend}, {arguments.threads} threads, {arguments.instances} "
            f"instances{made}; {ATOMS} atoms a structure; load before: {os.getloadavg()[0]:.1f}"
        )
        run(arguments, gfm, Path(name))


if __name__ == "__main__":
    main()
