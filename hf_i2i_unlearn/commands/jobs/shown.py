"""What `show` does: one picture completed by the original and by the unlearned model, and the page around it."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...audit.picture_verdicts import FLAT, NOTHING, Bounds, blank_fill, other_masks
from ...data.pairs import seeds_for
from ...errors import InputError
from ...evaluation.metrics import hole_mse
from ...methods.corruptions import Corruption
from ...models.base import I2IModel
from ...reporting.plain import called, hidden
from ...reporting.request import details, headline
from ...reporting.run_folder import RunFolder
from ..words import parse_corruption
from .certificate import masks_of
from .pair import Pair

PAINTED = "what is painted over on the picture"
DARK = 0.1  # a patch of which so much is painted over is hidden
FONTS = ("system-ui", "sans-serif")  # that every browser has: nothing is fetched


@dataclass(frozen=True)
class Completed:
    """A picture as both models complete it.

    Attributes:
        seen: with its hole, grey. before, after: completed by the original and by the unlearned model.
        errors: {"before", "after"}: relative errors, 1 for the mean colour of what is visible. grade: None where the mask is
            none of those that were judged.
    """

    seen: Image.Image
    before: Image.Image
    after: Image.Image
    errors: dict[str, float]
    grade: str | None

    def words(self) -> str:
        """Two sentences on it, as Markdown."""
        found = (
            f"Relative error: **{self.errors['before']:.2f}** by the original, **{self.errors['after']:.2f}** after "
            "unlearning. 1 is the error of the mean colour of what is visible; 0 is perfect."
        )
        return found if self.grade is None else f"**This picture: {self.grade}.** {found}"


class Shown:
    """Both models, the masks that a visitor may choose, and what the run's record says.

    Args:
        pair: the models. folder: of the run.
    """

    def __init__(self, pair: Pair, folder: RunFolder):
        self.pair, self.request, self.name = pair, folder.request, folder.name
        run, grid = folder.options, pair.original.grid
        trained = masks_of(parse_corruption(run.get("corruption") or f"center:{max(1, min(grid) // 2)}", several=True))
        self.masks: dict[str, Corruption] = {f"{hidden(str(t))} (as in training)": t for t in trained}
        self.masks |= {hidden(str(t)): t for t in other_masks(grid, trained)}

    @classmethod
    def load(cls, path: str, record: str | None = None, original: str | None = None, device="cpu") -> "Shown":
        """The models of a run's folder. record: the folder of the run, if not `path`; original: where it has moved.

        Raises:
            InputError: models that cannot be had.
        """
        folder = RunFolder(record or path)
        return cls(Pair.load(path, folder, device, original), folder)

    def verdict(self) -> str:
        """What the record says of the request, as Markdown."""
        if not self.request:
            return "There is no record of a request beside this model, so nobody knows whether one was honoured."
        return f"**{headline(self.request)}**\n\n" + "\n".join(f"- {line}" for line in details(self.request))

    @torch.no_grad()
    def complete(self, picture: Image.Image, mask: str, painted: Image.Image | None = None) -> Completed:
        """Complete a picture.

        Args:
            picture: of any size. mask: one of `masks`, or `PAINTED`.
            painted: of the size of the picture; what is not black there is hidden, by patches.

        Raises:
            InputError: no mask of that name, or one that hides nothing or everything.
        """
        model, original, reader = self.pair.model, self.pair.original, self.pair.reader
        pixels = self._pixels(picture).to(_device(original))
        seeds = np.array([seeds_for(0, 0)])
        chosen, name = self._mask(mask, painted, seeds)
        hole = original.hole(chosen).to(pixels.device)
        blank = float(hole_mse(blank_fill(pixels, hole), pixels, hole))
        done = {name: one.generate(pixels, chosen, seeds[:, 1]) for name, one in (("before", original), ("after", model))}
        errors = {kind: float(hole_mse(found, pixels, hole)) / max(blank, FLAT) for kind, found in done.items()}
        seen = torch.where(hole, 0.5, reader.unit(pixels))
        grade = self._grade(name, errors) if blank > FLAT else NOTHING
        before, after = (_picture(reader.unit(found)) for found in done.values())
        return Completed(_picture(seen), before, after, errors, grade)

    def _pixels(self, picture) -> torch.Tensor:
        """(1, C, H, W), normalised, as the model reads files."""
        channels = self.pair.original.channels
        return self.pair.reader.pixels([flattened(picture).convert("L" if channels == 1 else "RGB")])

    def _mask(self, mask, painted, seeds):
        """(1, rows, cols), and the name under which the record knows it, or None."""
        original = self.pair.original
        if mask in self.masks:
            return self.masks[mask](original.grid, seeds[:, 0]), str(self.masks[mask])
        if mask != PAINTED:
            raise InputError(f"'{mask}' is no mask of this page; choose from {', '.join([*self.masks, PAINTED])}.")
        if painted is None:
            raise InputError("Nothing is painted over; paint on the picture, or choose another mask.")
        dark = self.pair.reader.unit(self._pixels(painted)).mean(1)  # (1, H, W), cut as the picture is
        (height, width), (rows, cols) = dark.shape[1:], original.grid
        share = dark.view(1, rows, height // rows, cols, width // cols).mean((2, 4))
        chosen = share > DARK
        if not 0 < int(chosen.sum()) < rows * cols:
            raise InputError("Nothing or everything is painted over; paint over a part of the picture.")
        return chosen.cpu(), None

    def _grade(self, name, errors):
        """By the bounds of the record; None where it has none for this mask."""
        bounds = (self.request.get("masks") or {}).get(name)
        return Bounds(**bounds["unseen"]).grade(errors["before"], errors["after"]) if bounds else None


def _device(model: I2IModel) -> torch.device:
    return next(model.parameters()).device


def _picture(unit: torch.Tensor) -> Image.Image:
    """(1, C, H, W) in [0, 1] as a picture."""
    return enlarged(Image.fromarray((unit[0] * 255).round().byte().cpu().movedim(0, -1).squeeze(-1).numpy()))


def enlarged(picture: Image.Image, side: int = 224) -> Image.Image:
    """A small picture with each pixel as a square of several, so that people see it."""
    scale = -(-side // min(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST) if scale > 1 else picture


def flattened(picture: Image.Image) -> Image.Image:
    """A picture without transparency, on white."""
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def painted_over(layers: list[Image.Image]) -> Image.Image | None:
    """What was painted on any layer of an editor, white on black; None of nothing."""
    alpha = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in layers or () if layer is not None]
    found = np.max(alpha, axis=0) if alpha else np.zeros((1, 1), np.uint8)
    return Image.fromarray(np.where(found > 0, 255, 0).astype(np.uint8)) if found.any() else None


def gradio():
    """The library of the page. Raises InputError if it is not there."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported: nothing is sent
    try:
        import gradio
    except ImportError:
        raise InputError("The page needs gradio, which is an extra; pip install 'hf_i2i_unlearn[show]'.") from None
    return gradio


def page(shown: Shown, pictures: list[Image.Image] = ()):  # type: ignore[assignment]
    """The page, as `gradio.Blocks`. pictures: that a visitor may choose from."""
    gr = gradio()

    def complete(edited, mask):
        if edited is None or edited["background"] is None:
            raise gr.Error("Upload a picture, or choose one.")
        try:
            found = shown.complete(edited["background"], mask, painted_over(edited["layers"]))
        except InputError as error:
            raise gr.Error(str(error)) from error
        return found.seen, found.before, found.after, found.words()

    def choose(event):
        return enlarged(pictures[event.index])

    choose.__annotations__["event"] = gr.SelectData  # how gradio knows what to hand over

    with gr.Blocks(title=f"{shown.name}: before and after unlearning", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {shown.name}: before and after unlearning\n\nMade from {called(shown.pair.original_name)}.")
        gr.Markdown(shown.verdict())
        with gr.Row():
            with gr.Column():
                editor = gr.ImageEditor(
                    type="pil", label="A picture; paint over what is to be hidden", sources=["upload", "clipboard"],
                    transforms=(), layers=False, brush=gr.Brush(colors=["#808080"]), elem_id="picture",
                )  # fmt: skip
                if pictures:
                    gallery = gr.Gallery(list(pictures), label="or one of these", columns=6, allow_preview=False, height=180)
                    gallery.select(choose, None, editor)
                mask = gr.Radio([*shown.masks, PAINTED], value=next(iter(shown.masks)), label="What is hidden")
                button = gr.Button("Complete it", variant="primary")
            with gr.Column():
                words = gr.Markdown(elem_id="words")
                with gr.Row():
                    results = [
                        gr.Image(label=title, interactive=False, buttons=[], min_width=150)
                        for title in ("What the models see", "Completed by the original", "After unlearning")
                    ]
        button.click(complete, [editor, mask], [*results, words], api_name="complete")
    return blocks


def launch(blocks, **options) -> None:
    """Serve a page until it is closed, with fonts that every browser has."""
    gr = gradio()
    blocks.launch(theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]), **options)
