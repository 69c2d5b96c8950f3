"""LoRA on a linear layer with cheaper gradients: peft's weights, names and format."""

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable


class FusedLinear(PeftLinear):
    """peft's layer, with cheaper gradients where one adapter is trained on a frozen `nn.Linear`; elsewhere peft's own."""

    def forward(self, x, *args, **kwargs):
        # A compiler fuses on its own, and without gradients what is computed stays bit for bit what plain peft computes.
        plain = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not (args or kwargs)
        weights = self._weights() if plain else None
        if weights is None:
            return super().forward(x, *args, **kwargs)
        tensors, device = [x, *weights], x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            tensors = [w if w is None else w.to(torch.get_autocast_dtype(device)) for w in tensors]
        if len({w.dtype for w in tensors if w is not None}) > 1:
            return super().forward(x)
        x, *weights = tensors
        rows = LowRankLinear.apply(x.reshape(-1, x.shape[-1]), *weights, self.scaling[self._name()])  # (N, out)
        return rows.view(*x.shape[:-1], rows.shape[1])

    def _name(self) -> str | None:
        """Of the one adapter that acts, without any of LoRA's variants; None if none does, or several do."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or self.lora_variant or self.fan_in_fan_out or len(names) != 1:
            return None
        plain = isinstance(self.lora_dropout[names[0]], nn.Identity) and not self.lora_bias[names[0]]
        return names[0] if plain else None

    def _weights(self):
        """W, bias, A and B; None where they are not what the fused product takes."""
        name, base = self._name(), self.base_layer
        if name is None or type(base) is not nn.Linear:
            return None
        weights = [base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight]
        learns = any(w is not None and w.requires_grad for w in weights[:2])
        # Not a DTensor, which FSDP has not gathered.
        whole = all(w is None or type(w) in (torch.Tensor, nn.Parameter) for w in weights)
        return weights if whole and not learns else None


class LowRankLinear(torch.autograd.Function):
    """x W^T + bias + scale x A^T B^T, and gradients for x, A and B alone.

    The product with the adapter is added within the matrix product, and thin matrices are (r, N), not (N, r): on a CPU the
    gradient of B takes a sixth of the time so.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):
        """x: (N, in), weight: (out, in), bias: (out) or None, a: (r, in), b: (out, r) -> (N, out)."""
        low = (a @ x.t()).mul_(scale)  # (r, N)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias).addmm_(low.t(), b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, a, b, low = ctx.saved_tensors
        for_x, _, _, for_a, for_b, _ = ctx.needs_input_grad
        back = (b.t() @ dy.t()).mul_(ctx.scale)  # (r, N)
        dx = (dy @ weight).addmm_(back.t(), a) if for_x else None  # nobody needs it below the first adapter
        return dx, None, None, back @ x if for_a else None, (low @ dy).t() if for_b else None, None
