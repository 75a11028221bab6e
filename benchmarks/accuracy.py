"""Judge models: train configurations for a stated processor time; compare errors, uncertainty and speed with a base.

    python benchmarks/accuracy.py train --name wide --set model.hidden=96 --core-minutes 48 --ranks 2 --base base
    python benchmarks/accuracy.py train --name tio2 --sources tio2_qe --core-minutes 3 --seeds 0,1,2 --quick
    python benchmarks/accuracy.py record --name base --output real_data/run     # a training that exists already
    python benchmarks/accuracy.py speed --base base                             # times all runs of the folder in turns
    python benchmarks/accuracy.py table --base base [--heads wide]
    python benchmarks/accuracy.py figure --base base --out pareto.png
    python benchmarks/accuracy.py peers --peer mace --environments envs --sources tio2_qe,mptrj --core-minutes 3
    python benchmarks/accuracy.py table --peer mace                             # its runs beside ours of one source
    python benchmarks/accuracy.py figure --peer mace --out peers.png

Without --config or --set the configuration is that of benchmarks/real_data.py; a YAML file and settings are laid over
it. Each run has a folder of its own in --results, with train.yaml, the training and a result.json; runs of several
seeds are called NAME-sK. A training counts its own processor time (`budget.core_minutes`), all ranks together, so other
work on the machine does not decide. --quick is for many short runs: errors alone, without calibration, uncertainties
and the timing of inference. Peers run in environments of their own, which are made when first needed, on the same files
for the same processor time (see benchmarks/peers); `speed` times them in turns with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from judge import report, timing
from judge.training import (
    RESULT,
    choose_sources,
    collect,
    describe_commit,
    lay_over,
    read_results,
    say,
    train_run,
    write_result,
)
from peers.compare import PEERS, PeerError, draw_peers, format_peers, make_environment, open_peer, train_peer

TREE = Path(__file__).resolve().parents[1]
SINGLE = ("hea_nbmotaw", "ethanol_pbe", "mptrj", "tio2_qe", "elements_mlearn", "qm22_b3lyp")
"""Sources on which peers are trained, each alone."""
SEED_STEP = 1000
"""Seeds of runs lie so far apart that their members share none."""


def make_configuration(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the configuration of a run: the reference, the sources, the file, the settings, the seed."""
    from real_data import configuration

    from atomsieve.train.config import apply_settings

    config = configuration(given.converted.resolve(), given.core_minutes, given.ranks)
    if given.sources:
        config = choose_sources(config, given.sources.split(","))
    if given.config:
        change = yaml.safe_load(given.config.read_text()) or {}
        for key in ("data", "output", "default_head"):
            if key in change:
                raise SystemExit(f"{given.config}: {key} is the judge's; leave it out, and name sources by --sources")
        config = lay_over(config, change)
    config = apply_settings(config, given.settings)
    if config["ensemble"].get("members") == 1 and config["ensemble"].get("mode") == "spread":
        config["ensemble"]["mode"] = "together"
    config["ensemble"]["seed"] = config["ensemble"].get("seed", 0) + SEED_STEP * seed
    return config


def train(given: argparse.Namespace) -> None:
    """Train one run for each seed, and judge it."""
    from real_data import convert

    given.converted.mkdir(parents=True, exist_ok=True)
    convert(given.data, given.converted)
    seeds = [int(word) for word in given.seeds.split(",")]
    for seed in seeds:
        place = (given.results / (f"{given.name}-s{seed}" if len(seeds) > 1 or seed else given.name)).resolve()
        train_run(place, make_configuration(given, seed), given.ranks, given.quick)
        judge(given, place, place / "run", seed)


def judge(given: argparse.Namespace, place: Path, output: Path, seed: int) -> None:
    """Write result.json of a training, its inference timed beside the base unless --quick is given."""
    place.mkdir(parents=True, exist_ok=True)
    commit = given.commit or describe_commit(TREE)
    result = {"name": given.name, "seed": seed, "commit": commit, "ranks": given.ranks}
    result |= {"gfm": str((output / "gfm").resolve()), **collect(output, given.converted / "test.bp", given.quick)}
    write_result(place, result)
    if not given.quick:
        results = read_results(given.results)
        own = [r for r in results if r["place"] == str(place)]
        others = [r for r in results if r["name"] == given.base and r["place"] != str(place)][:1]
        time_results([*others, *own], given)
    training = result["training"]
    say(
        f"{place.name}: {training['steps']} steps, {training['structures']:.0f} structures, "
        f"{training['core_seconds']:.0f} core-seconds; wrote {place / RESULT}"
    )


def record(given: argparse.Namespace) -> None:
    """Judge a training that was made by other means."""
    place = given.results.resolve() / given.name
    given.results.mkdir(parents=True, exist_ok=True)
    judge(given, place, given.output, given.seed)


def time_results(results: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Time models in turns, the first one as the base, and put what they cost into each result.json.

    A peer is timed twice: with its own neighbour lists, and on graphs that are ready.
    """
    base, ready = results[0]["name"], " with ready graphs"
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crystals-")))
        calls: dict[str, timing.Call] = {}
        for result in results:
            if "peer" in result:
                process = open_peer(result, given.structures, place)
                stack.callback(process.close)
                calls[result["place"]] = partial(process.ask, "whole")
                calls[result["place"] + ready] = partial(process.ask, "model")
            else:
                calls[result["place"]] = timing.open_ensemble(Path(result["gfm"]), None, given.structures)
        costs = timing.time_in_turns(calls, results[0]["place"], given.structures, given.rounds)
    costs = {name: row | {"base": base} for name, row in costs.items()}
    for result in results:
        path = Path(result["place"])
        found = json.loads((path / RESULT).read_text()) | {"inference": costs[str(path)]}
        if "peer" in result:
            found["inference_ready"] = costs[str(path) + ready]
        write_result(path, found)
    timing.say_costs({Path(name).name: row for name, row in costs.items()})


def speed(given: argparse.Namespace) -> None:
    """Time all runs of the folder in turns in this process, one of each name."""
    groups = report.group_by_name(read_results(given.results))
    base = report.pick_group(groups, given.base)[0]
    chosen = given.runs.split(",") if given.runs else list(groups)
    time_results([base, *(report.pick_group(groups, name)[0] for name in chosen if name != given.base)], given)


def peers(given: argparse.Namespace) -> None:
    """Train a peer on each source, with each seed, and judge it; one that fails does not stop the others."""
    failed = []
    python = make_environment(given.peer, given.environments.absolute())
    for source in given.sources.split(","):
        for seed in (int(word) for word in given.seeds.split(",")):
            place = given.results.resolve() / (f"{given.name or given.peer}-{source}" + (f"-s{seed}" if seed else ""))
            if (place / RESULT).exists():
                continue
            try:
                train_peer(given.peer, python, given.data, source, given.core_minutes, given.settings, place, seed)
            except PeerError as error:
                failed.append(str(error))
                say(failed[-1])
    if failed:
        raise SystemExit("\n".join(failed))


def table(given: argparse.Namespace) -> None:
    """Print the table of all runs, or of the heads of one run beside the base."""
    results = read_results(given.results)
    if given.peer:
        print(format_peers(results, given.peer))
    elif given.heads:
        print(report.format_heads(results, given.base, given.heads))
    else:
        print(report.format_table(results, given.base))


def figure(given: argparse.Namespace) -> None:
    """Draw error against inference cost."""
    results = read_results(given.results)
    if given.peer:
        drawn = draw_peers(results, given.peer, given.out)
    else:
        drawn = report.draw_pareto(results, given.base, given.out)
    say(f"wrote {given.out}: {', '.join(drawn) or 'no run has been timed; accuracy.py speed does it'}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--results", type=Path, default=Path("accuracy"), help="folder of results")
    common.add_argument("--base", default="base", help="name of the run that others are compared with")
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--structures", type=int, default=64, help="crystals in a timed call")
    timed.add_argument("--rounds", type=int, default=9)
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, default=TREE.parent / "shared" / "data")
    data.add_argument("--converted", type=Path, default=Path("accuracy_data"), help="folder of train.bp and test.bp")
    data.add_argument("--name", required=True)
    data.add_argument("--ranks", type=int, default=1)
    data.add_argument("--quick", action="store_true", help="errors alone: no uncertainties, no timing")

    trained = verbs.add_parser("train", parents=[common, timed, data], help="train a configuration and judge it")
    trained.add_argument("--config", type=Path, help="YAML laid over the reference configuration")
    trained.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=VALUE")
    trained.add_argument("--sources", help="names joined by commas; default: all 16")
    trained.add_argument("--core-minutes", type=float, default=48.0)
    trained.add_argument("--seeds", default="0", help="numbers joined by commas")
    trained.set_defaults(call=train, commit=None)
    recorded = verbs.add_parser("record", parents=[common, timed, data], help="judge a training that exists")
    recorded.add_argument("--output", type=Path, required=True, help="its output folder, which holds gfm/ and runs/")
    recorded.add_argument("--seed", type=int, default=0)
    recorded.add_argument("--commit", help="of the code that trained it; default: of this checkout")
    recorded.set_defaults(call=record)
    fast = verbs.add_parser("speed", parents=[common, timed], help="time runs in turns, peers too")
    fast.add_argument("--runs", help="names joined by commas; default: all")
    fast.set_defaults(call=speed)
    other = verbs.add_parser("peers", parents=[common], help="train another package on single sources")
    other.add_argument("--peer", choices=tuple(PEERS), required=True)
    other.add_argument("--environments", type=Path, default=Path("environments"), help="folder of virtual environments")
    other.add_argument("--data", type=Path, default=TREE.parent / "shared" / "data")
    other.add_argument("--sources", default=",".join(SINGLE), help="names joined by commas")
    other.add_argument("--core-minutes", type=float, default=3.0)
    other.add_argument("--seeds", default="0")
    other.add_argument("--name", help="runs are called NAME-SOURCE; default: the peer's name")
    other.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="its own options"
    )
    other.set_defaults(call=peers)
    shown = verbs.add_parser("table", parents=[common], help="all runs beside the base")
    shown.add_argument("--heads", metavar="NAME", help="the heads of this run beside those of the base instead")
    shown.add_argument("--peer", choices=tuple(PEERS), help="runs of a peer beside ours of the same source instead")
    shown.set_defaults(call=table)
    drawn = verbs.add_parser("figure", parents=[common], help="error against inference cost")
    drawn.add_argument("--peer", choices=tuple(PEERS), help="runs of a peer beside ours of the same source instead")
    drawn.add_argument("--out", type=Path, default=Path("pareto.png"))
    drawn.set_defaults(call=figure)
    return parser.parse_args()


def main() -> None:
    """Do what the command line says."""
    given = parse_arguments()
    if given.verb in ("train", "record", "speed", "peers"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from atomsieve.cli.launch import relaunch

        relaunch()  # with the allocator's settings, as the commands start
    given.call(given)


if __name__ == "__main__":
    main()
