"""Optimisers beside AdamW: Muon for the weight matrices of blocks, AdamW for the rest, as one."""

import torch
from torch import nn

from ..errors import InputError


def with_muon(model: nn.Module, family: str, args) -> "OptimizerPair":
    """Muon over the trainable matrices of a model's blocks, AdamW over its other trainable weights.

    Args:
        family: for messages. args: `TrainingArguments` with `muon_learning_rate`.

    Raises:
        InputError: no matrix of a block is to be trained.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = block_matrices(model)
    if not matrices:
        raise InputError(
            f"Muon takes the weight matrices of transformer blocks, and none of the '{family}' model's is to be trained; set "
            "muon_learning_rate to 0."
        )
    taken = {id(p) for p in matrices}
    plain = [p for p in trainable if id(p) not in taken and p.ndim < 2]
    other = [p for p in trainable if id(p) not in taken and p.ndim >= 2]
    decay = args.weight_decay
    return OptimizerPair(
        torch.optim.Muon(matrices, lr=args.muon_learning_rate, weight_decay=decay),
        torch.optim.AdamW(
            [{"params": other, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            fused=True,
        ),
    )


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of the linear layers within stacks of blocks (`nn.ModuleList`): not embeddings, not heads."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = {id(layer): layer for stack in stacks for layer in stack.modules() if isinstance(layer, nn.Linear)}
    return [layer.weight for layer in layers.values() if layer.weight.requires_grad]


class OptimizerPair(torch.optim.Optimizer):
    """Two optimisers over disjoint weights that step, save and load as one (Muon takes matrices only)."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        self.defaults = {}

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self):
        return {p: s for optimizer in self.optimizers for p, s in optimizer.state.items()}

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict):
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state_dict[str(i)])
