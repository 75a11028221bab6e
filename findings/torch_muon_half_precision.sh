#!/usr/bin/env bash
# torch 2.13.0: torch.optim.Muon iterates in BF16 whatever the precision of the parameters is.
#
# The Newton-Schulz iteration that makes the momentum orthogonal casts it to BF16 first. Its documentation does not say so, and one expects
# an optimiser to work in the precision of its parameters, or to have an option: a model trained in FP64 gets updates with an error
# of a per cent (more where the gradient is ill-conditioned), and two machines that multiply BF16 differently part at the first step.
#
# Output seen (2026-12-01, Python 3.11, CPU):
#   FP64 parameter: update differs from the same iteration in FP64 by 1.4e-02
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6'
cat > "$work/muon.py" <<'PY'
import torch

a, b, c = 3.4445, -4.7750, 2.0315  # the defaults of torch.optim.Muon
gradient = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
p = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.float64))
p.grad = gradient.clone()
torch.optim.Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()

x = gradient / gradient.norm()
for _ in range(5):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
error = float((p.detach() + x).norm() / x.norm())
print(f"FP64 parameter: update differs from the same iteration in FP64 by {error:.1e}")
assert error > 1e-3, "changed: the iteration follows the precision of the parameter"
PY
"$work/venv/bin/python" "$work/muon.py"
