"""The lines that a run prints before it computes: its plan, and the results of its earlier parts."""

from __future__ import annotations

from collections.abc import Iterator

from atomsieve.gfm.evaluation_file import describe_weakness
from atomsieve.runs.environment import count_cores
from atomsieve.screen.engine.reporter import Reporter
from atomsieve.screen.results.stability import describe_ranking
from atomsieve.screen.setup import Claim, Plan, Recovered
from atomsieve.text import pluralize


def greet(reporter: Reporter, plan: Plan) -> None:
    """Print how the run computes and where its results go."""
    reporter.show(*format_plan(plan))


def greet_again(reporter: Reporter, claim: Claim, found: Recovered) -> None:
    """Print the results that earlier parts of the run left; nothing at a first start."""
    reporter.show(*format_claim(claim), *format_recovered(found))


def format_plan(plan: Plan) -> Iterator[str]:
    """Yield lines on the choices made: backend or servers, head, results folder, batches, cores, copies."""
    model = plan.model
    predictor, can = model.predictor, model.predictor.capabilities
    if model.backend_choice is not None:
        yield f"backend: {model.backend_choice}"
    if can.endpoints:
        yield (
            f"computed by {','.join(can.endpoints)}: {predictor.precision}, backend {predictor.backend}, "
            f"{predictor.device}"
        )
    given = "" if plan.options.head else " (the ensemble's default)"
    yield f"head: {', '.join(model.heads)}{given}"
    yield f"results: {plan.files.folder.path}"
    if (note := predictor.note(model.heads[0])) is not None:
        yield note
    if model.ensemble is not None:
        yield from describe_weakness(model.ensemble, model.heads)
    if plan.budget.is_chosen:
        yield f"batches: up to {plan.budget.max_atoms:,} atoms ({plan.budget.why})"
    if plan.runner.threads is not None:
        used, cores = plan.ranks * plan.runner.threads, count_cores()
        if used == 1 < cores:
            yield f"using 1 of {cores} cores; start it as `mpirun -n {cores} screen run ...` to use all"
    if plan.copies is not None:
        yield plan.copies
    if plan.lacking is not None:
        yield plan.lacking
    yield from plan.references
    if plan.options.top and (line := describe_ranking(plan.results, plan.options.by)) is not None:
        yield line


def format_claim(claim: Claim) -> Iterator[str]:
    """Yield lines on results that an earlier part of the run kept on nodes."""
    collected = claim.collected
    if collected is not None and collected.chunks:
        yield f"collected: {collected.chunks:,} chunks, nodes: {collected.places:,}"
    if collected is not None and collected.damaged:
        yield f"{collected.damaged:,} chunks on nodes do not fit their checksums and are computed again"
    if claim.left_on_nodes:
        yield (
            "an earlier part of this run kept results on nodes (--local): what was not brought here by `screen "
            "collect` is computed again"
        )


def format_recovered(found: Recovered) -> Iterator[str]:
    """Yield lines on durable, damaged and suspected chunks."""
    if found.done:
        yield f"continuing: {len(found.done):,} of {found.count:,} chunks are done"
    if found.damaged:
        yield f"{found.damaged:,} chunks do not fit their checksums and are computed again"
    if found.retried:
        yield f"computed once more: {pluralize(len(found.retried), 'chunk')} with POISONED rows"
    elif found.suspects:
        yield (
            f"at hand when an earlier run died: {pluralize(len(found.suspects), 'chunk')}; computed last, in processes "
            "apart"
        )
