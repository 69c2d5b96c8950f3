"""`ErasureTrainer`: what was moved towards a fresh initialisation learns the original's work again, from retain pictures."""

from torch import nn

from ..models.base import I2IModel
from .trainer import UnlearningTrainer, prepare_weights


class EncoderAndLoss(nn.Module):
    """Encoder and training loss of a model behind one `forward`, which is what DDP sees."""

    def __init__(self, i2i: I2IModel):
        super().__init__()
        self.i2i = i2i

    def forward(self, pixel_values, draw, target=None):
        """E(T(x)), (B, ...); with a target its `distillation_loss`, (B,)."""
        return self.i2i(pixel_values, draw) if target is None else self.i2i.distillation_loss(pixel_values, draw, target)


class ErasureTrainer(UnlearningTrainer):
    """`UnlearningTrainer` whose model starts from `models.erasure.move_to_fresh`, and whose original is another one.

    The objective is the method's own, such as eq. 10, against the original: no retain picture is needed beyond those, and no
    forget picture is ever shown as something to be completed. With `distil_decoder` the decoder is trained too, by the family's
    training loss towards what the original makes of retain pictures (completions; of a diffusion model its predictions):

        loss = objective + distil_decoder * L(x_r, D0(E0(T(x_r))))

    Args:
        distil_decoder: the weight of that term; 0 leaves the decoder bit for bit what it was. The rest is as in
            `UnlearningTrainer`; `original` must be given, for the model is no longer it.
    """

    def __init__(self, *args, distil_decoder: float = 0.0, **kwargs):
        self.distil_decoder = distil_decoder
        super().__init__(*args, **kwargs)
        self.data_collator.augment_forget = False

    def trained_module(self, model, original, args, method):
        if not self.distil_decoder:
            return super().trained_module(model, original, args, method)
        trained = [p for p in model.parameters() if p.requires_grad]
        prepare_weights(model, original, args, method)
        for parameter in trained:
            parameter.requires_grad_(True)
        return EncoderAndLoss(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs)
        if self.distil_decoder:
            output = self._output(model, inputs["retain"], inputs["seeds"][:, 0])
            self.log_terms(output_distance=output)
            loss = loss + self.distil_decoder * output
        return (loss, None) if return_outputs else loss

    def loss_aside(self, model, inputs):
        loss = super().loss_aside(model, inputs)
        return loss + self._output(model, inputs["retain"], inputs["seeds"][:, 0]) if self.distil_decoder else loss

    def _output(self, model, pixels, seeds):
        """The mean training loss towards what the original makes of the pictures."""
        mask = self.corruption.at(self.state.global_step)(self.i2i.grid, seeds)
        draw = self.i2i.draw(pixels, mask, seeds)
        wanted = getattr(self.original, "module", self.original).distillation_target(pixels, draw, mask, seeds)
        return model(pixels, draw, wanted).mean()
