"""The metrics page tells what was computed, and its numbers add up."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import defaultdict

import numpy as np
import pytest

from atomsieve.remote.transport import Rejected
from atomsieve.remote.wire import request_arrays
from tests.helpers import copper_oxides
from tests.serve.triton import until_at_work


def page(server, before=None, requests=0):
    """Return the samples of the metrics page of model gfm: name -> label value -> number.

    The server counts a request a moment after it has answered it: wait until `requests` more than `before` are there.
    """
    deadline = time.monotonic() + 120
    while True:
        found = samples(server)
        if before is None or grown(found, before, "nv_inference_request_success") >= requests:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def samples(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.options.metrics}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    parser = pytest.importorskip("prometheus_client.parser")
    assert len(list(parser.text_string_to_metric_families(text))) > 10  # Prometheus can read it
    found = defaultdict(dict)
    for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        known = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if known.get("model") == "gfm":
            label = next((v for k, v in known.items() if k in ("status", "kind", "le", "reason")), "")
            found[name][label] = float(value)
    return found


def grown(after, before, name, label=""):
    return after[name].get(label, 0.0) - before[name].get(label, 0.0)


def test_what_was_computed_is_counted(server):
    before = page(server)
    batch = copper_oxides(10)
    numbers = batch.numbers.copy()
    numbers[: batch.counts[0]] = 1  # the head `metal` never saw hydrogen
    arrays = request_arrays(batch.replace(numbers=numbers))
    wrong = {**arrays, "n_atoms": arrays["n_atoms"] + 1}
    with server.transport() as transport:
        for _ in range(3):
            transport.infer("gfm", arrays, ["energy"], {"head": "metal"})
        for parameters, tensors in (
            ({"head": "metal"}, wrong),
            ({"head": "mettle"}, arrays),
            ({"ensemble_id": "0" * 64}, arrays),
        ):
            with pytest.raises(Rejected):
                transport.infer("gfm", tensors, ["energy"], parameters)
    after = page(server, before, requests=6)

    def more(name, label=""):
        return grown(after, before, f"atomsieve_{name}", label)

    assert more("requests_total") == 3
    assert more("structures_total", "OK") == 27 and more("structures_total", "UNSEEN_ELEMENT") == 3
    assert more("atoms_total") == 3 * batch.n_atoms
    assert more("evaluations_total") == 3 and more("batches_total") == 6
    assert more("errors_total", "invalid") == 2 and more("errors_total", "other_ensemble") == 1
    assert more("compute_seconds_total") > 0
    assert more("batch_structures_bucket", "16") - more("batch_structures_bucket", "4") == 3
    assert more("batch_structures_bucket", "0") == 3 and more("batch_requests_bucket", "1") == 6
    assert more("batch_requests_bucket", "+Inf") == more("batch_structures_bucket", "+Inf") == more("batches_total")
    # the server calls a request that a model has refused a success too: `atomsieve_errors_total` knows better
    assert grown(after, before, "nv_inference_request_success") == 6
    assert grown(after, before, "nv_inference_queue_duration_us") >= 0 and "nv_inference_exec_count" in after


def test_requests_that_come_together_are_computed_together(server, local):
    """Behind a long request, many wait; they are computed in fewer batches than they are."""
    long, small, found = copper_oxides(200, seed=7).take(np.arange(6000) % 200), copper_oxides(2, seed=8), {}
    truth = local(small, {"energy"}, head="metal").energy
    first = page(server)

    def ask(k, batch):
        with server.transport() as transport:
            found[k] = transport.infer("gfm", request_arrays(batch), ["energy"], {"head": "metal"})["energy"]

    ask(0, long)
    before = page(server, first, requests=1)
    of_long = grown(before, first, "atomsieve_evaluations_total")  # it is worked through in pieces
    threads = [threading.Thread(target=ask, args=(k, small if k else long)) for k in range(33)]
    until_at_work(server, threads[0])
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(1, 33):
        np.testing.assert_allclose(found[k], truth, rtol=1e-9)
    after = page(server, before, requests=33)
    assert grown(after, before, "nv_inference_request_success") == 33
    batches = grown(after, before, "nv_inference_exec_count")
    assert batches == grown(after, before, "atomsieve_batches_total") < 33
    assert grown(after, before, "atomsieve_evaluations_total") < of_long + 32
    assert grown(after, before, "atomsieve_structures_total", "OK") == 6000 + 64
    assert grown(after, before, "nv_inference_queue_duration_us") > 0
    small_ones = grown(after, before, "atomsieve_batch_requests_bucket", "1")
    assert small_ones < batches  # at least one batch held several


def test_records_of_batches_agree_with_the_page(server):
    with server.transport() as transport:
        transport.infer("gfm", request_arrays(copper_oxides(3)), ["energy"], {"head": "metal"})
    deadline = time.monotonic() + 120
    while (told := from_records(server)) != (shown := from_page(server)):  # either may come a moment later
        assert time.monotonic() < deadline, f"{told} is not {shown}"
        time.sleep(0.1)
    assert told["batches"] > 0 and told["atoms"] > 0


def from_records(server):
    logged = server.events("batch")
    by_status = defaultdict(float)
    for record in logged:
        for status, many in record["status"].items():
            by_status[status] += many
    return {"atoms": sum(b["atoms"] for b in logged), "batches": len(logged), **by_status}


def from_page(server):
    counted = page(server)
    atoms, batches = (counted[f"atomsieve_{name}_total"].get("", 0.0) for name in ("atoms", "batches"))
    return {"atoms": atoms, "batches": batches, **counted["atomsieve_structures_total"]}
