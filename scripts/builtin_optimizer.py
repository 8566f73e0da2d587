"""Muon for the weight matrices and AdamW for everything else, as one torch optimizer that can be saved.

Its update costs about a tenth of a training step here and the matrices learn from fewer tokens, which is what
counts on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/


class MuonAdamW(torch.optim.Optimizer):
    """Orthogonalised momentum for the 2-D weights inside the layers, AdamW for embeddings and norms.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; step size
    0.2 * sqrt(max(rows, columns)) and decoupled weight decay from Liu et al. 2025, arXiv:2502.16982v1,
    section 2.2, so that one learning rate serves both kinds of parameter.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        """Sort the parameters of `model` into the two kinds."""
        named = dict(model.named_parameters())
        inside = {n for n, p in named.items() if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
        matrices = [p for n, p in named.items() if n in inside]
        rest = [p for n, p in named.items() if n not in inside]
        groups = [
            {"params": matrices, "muon": True, "weight_decay": weight_decay},
            {"params": rest, "muon": False, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for param in params:
                param.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(params, group)
            else:
                for param in params:
                    self._adam(param, group)
        return loss

    def _muon(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        for param in params:
            if "momentum" not in self.state[param]:
                self.state[param]["momentum"] = torch.zeros_like(param)
            memory = self.state[param]["momentum"]
            memory.lerp_(param.grad, 1 - group["momentum"])
            look_ahead = param.grad.lerp(memory, group["momentum"])
            scale = 0.2 * max(param.shape) ** 0.5
            param.add_(orthogonal(look_ahead), alpha=-group["lr"] * scale)

    def _adam(self, param: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1
        b1, b2 = group["betas"]
        state["first"].lerp_(param.grad, 1 - b1)
        state["second"].lerp_(param.grad.square(), 1 - b2)
        first = state["first"] / (1 - b1 ** state["step"].item())
        second = state["second"] / (1 - b2 ** state["step"].item())
        param.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrix: Newton-Schulz, singular values end between 0.6 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T.contiguous() if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = torch.mm(x, x.T.contiguous())
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
