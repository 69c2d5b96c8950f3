"""What a run can vouch for.

Whose request its checkpoints serve, how often each picture was trained on, and that it trained at all.
"""

from collections import Counter
from pathlib import Path

from accelerate.utils import gather_object

from ..data.decoding import picture_hash
from ..data.pairs import ForgetRetainPairs
from ..errors import InputError, RunError
from ..storage import content_hash, read_json, write_json

FILE = "unlearning.json"  # in a checkpoint

NAMES = {"forget": "forget set", "corruption": "T", "method": "method"}


class Accounting:
    """Of one run.

    Args:
        pairs: its training pairs. corruption, method: its T and its method.

    Attributes:
        identity: what a checkpoint must have been made for to be gone on with: {"forget": a hash of the pictures, None for a
            stream, "corruption", "method"}.
        counts: {hash of a forget picture: how often it was trained on}, by all processes as of the last `gather`.
    """

    def __init__(self, pairs, corruption, method):
        hashes = list(map(picture_hash, pairs.forget.dataset)) if isinstance(pairs, ForgetRetainPairs) else None
        self.identity = {
            "forget": request_hash(hashes) if hashes is not None else None,
            "corruption": str(corruption),
            "method": str(method),
        }
        self.wanted = set(hashes or ())
        self.counts: Counter[str] = Counter()
        self._mine: Counter[str] = Counter()

    def saw(self, hashes: list[str]) -> None:
        """A batch with these forget pictures is trained on, by this process."""
        self._mine.update(hashes)

    def gather(self) -> None:
        """Add up what all processes have seen. All of them must call it."""
        self.counts = sum((Counter(part) for part in gather_object([dict(self._mine)])), Counter())

    @property
    def missed(self) -> list[str]:
        """Hashes of forget pictures that were never trained on; of a stream nobody knows. Call `gather` before."""
        return sorted(self.wanted - self.counts.keys())

    def save(self, folder) -> None:
        """Write `FILE` into a checkpoint."""
        write_json(Path(folder) / FILE, self.identity | {"trained": dict(self.counts)})

    def load(self, folder, is_main: bool) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it was made for another request, under another T or by another method.
        """
        found = read_json(Path(folder) / FILE)
        for name, word in NAMES.items():
            if name in found and found[name] != self.identity[name]:
                values = "" if name == "forget" else f" ('{found[name]}', not '{self.identity[name]}')"
                raise InputError(
                    f"The checkpoint '{folder}' belongs to another request: its {word} is another one{values}. Go on with the "
                    "options of that run, or start this one in a new --output_dir."
                )
        self._mine = Counter(found.get("trained", {})) if is_main else Counter()


def request_hash(hashes) -> str:
    """Of a set of pictures, by theirs (`picture_hash`): whatever their order."""
    return content_hash(sorted(hashes))


def check_steps(args, pairs) -> None:
    """Raise InputError where no step can be taken: what was not trained must not be called unlearned."""
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise InputError("No step can be taken with max_steps 0 or no epoch; give --max_steps or --num_train_epochs above 0.")
    if args.dataloader_drop_last and isinstance(pairs, ForgetRetainPairs):
        wanted = args.per_device_train_batch_size * args.world_size
        if len(pairs) < wanted:
            raise InputError(
                f"No step can be taken: dataloader_drop_last leaves out batches of fewer than {wanted} pairs, and there are "
                f"{len(pairs)} forget pictures. Leave dataloader_drop_last out, or set per_device_train_batch_size lower."
            )


def weights_hash(trained: dict) -> str:
    """A hash of the weights that are trained (under FSDP, of this process's shards)."""
    return content_hash((name, getattr(p, "to_local", lambda p=p: p)()) for name, p in sorted(trained.items()))


def refuse_unmoved(before: str, after: str, steps: int, learning_rate: float) -> None:
    """Raise RunError if training has changed no weight."""
    if before == after:
        raise RunError(
            f"No weight has moved in {steps} steps, so nothing was unlearned and nothing is saved. Start again with a "
            f"--learning_rate above {learning_rate:g}."
        )
