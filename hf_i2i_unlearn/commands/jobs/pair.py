"""An unlearned model and its original, loaded as its run says: what `verify` and `show` look at."""

from dataclasses import dataclass
from pathlib import Path

from ...data.reading import ImageReader, load_processor
from ...errors import InputError
from ...models.auto import DEMOS, family_of, family_options, load_model
from ...models.base import I2IModel
from ...places import check_places
from ...reporting.run_folder import RunFolder


@dataclass
class Pair:
    """Both models on their device, in eval mode; what reads pictures for them; and the original's name."""

    model: I2IModel
    original: I2IModel
    reader: ImageReader
    original_name: str

    @classmethod
    def load(
        cls,
        path: str,
        folder: RunFolder,
        device,
        original: str | None = None,
        on_corrupt="refuse",
        background="white",
        generation_steps: int | None = None,
    ) -> "Pair":
        """Load both.

        Args:
            path: folder or Hub id of the unlearned model. folder: of the run that made it.
            original: folder or Hub id; that of the run if None. on_corrupt, background: see `ImageReader`.
            generation_steps: those of the run if None.

        Raises:
            InputError: a model that cannot be had, or models of different kinds.
        """
        run = folder.options
        if not original:
            places = {"original": run.get("model"), "patches": run.get("patches")}
            check_places(places, ("original", "patches"), folder.path)
        name = original or run.get("model")
        if not name:
            raise InputError(f"'{folder.path}' does not say what was unlearned; give --original.")
        found = DEMOS.get(name, name)
        options = family_options(run, generation_steps, family_of(found, run.get("subfolder")))
        before = load_model(found, run.get("patches") or (), **options).to(device).eval()
        after = load_model(path, **{k: v for k, v in options.items() if k != "subfolder"}).to(device).eval()
        if type(after) is not type(before) or after.grid != before.grid:
            raise InputError(f"'{path}' and the original '{name}' are models of different kinds or sizes.")
        own = (str(p) for p in (path, folder.path) if Path(p, "preprocessor_config.json").is_file())
        processor = load_processor(next(own, found))  # a pipeline has none
        return cls(after, before, ImageReader(processor, after.channels, None, on_corrupt, background), name)
