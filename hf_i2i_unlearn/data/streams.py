"""Endless streams of rows, the same for any number of processes and workers."""

import itertools
import logging
import time
from collections.abc import Iterator

import fsspec
import torch
from huggingface_hub.errors import HTTPError

from ..errors import InputError, RunError
from .pairs import seeds_for

logger = logging.getLogger(__name__)


LONGEST_WAIT = 60  # seconds between two attempts at a stream; the first is one second


class Stream(torch.utils.data.IterableDataset):
    """What endless streams of rows have in common.

    Every process and every loader worker reads the whole stream and keeps its share before anything is decoded, so the order is
    the same for any number of either. A pass that ends is begun again, reshuffled. A source that does not answer is tried again
    from the row it stopped at, beyond what `datasets` retries by itself.

    Attributes:
        rows_per_batch: rows that a batch of all processes takes: workers take turns by so many. The trainer sets it.
        start: rows before this one are None, so that a resumed run passes over them undecoded. The trainer sets it.
    """

    rows_per_batch, start = 1, 0

    def __init__(self, seed: int, shuffle_buffer: int, attempts: int, source: str):
        if attempts < 1:
            raise InputError(f"A stream must be tried once at least; set stream_attempts to 1 or more, not {attempts}.")
        self.seed, self.shuffle_buffer, self.attempts, self.source = seed, shuffle_buffer, attempts, source

    def shuffled(self, stream, seed):
        if not self.shuffle_buffer:
            return stream
        # From one shard at a time (their order is shuffled too): reading several at once, `datasets` 5.2 sleeps for
        # five seconds at every end of a pass.
        return stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)

    def share(self, rows):
        """(number, row) of those rows that belong to this loader worker."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            fsspec.asyn.reset_lock()  # a fork would wait for it for ever
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return ((t, row) for t, row in enumerate(rows) if t // self.rows_per_batch % count == number)

    def endless(self, stream, name: str):
        """The rows of a stream, pass after pass.

        Raises:
            InputError: there are none. RunError: the source did not answer at `attempts` tries in a row.
        """
        stream = stream.with_format(None)  # an object of our own: workers have the epoch of a common one in shared memory
        for number in itertools.count():
            stream.set_epoch(number)
            done = failed = 0
            while True:
                try:
                    for row in itertools.islice(_rows(stream), done, None):
                        yield row
                        done, failed = done + 1, 0
                    break
                except (OSError, HTTPError) as error:
                    failed += 1
                    self._wait_or_give_up(error, name, done, failed)
            if not done:
                raise InputError(f"The {name} set is empty; choose classes, rows or files that the stream holds.")

    def _wait_or_give_up(self, error, name, done, failed):
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if failed >= self.attempts:
            raise RunError(
                f"{self.source} does not answer after {failed} attempts, at row {done} of the {name} set ({reason}). When it "
                "is there again, go on with --resume_from_checkpoint true; --stream_attempts says how long to wait."
            ) from error
        wait = min(2 ** (failed - 1), LONGEST_WAIT)
        logger.warning(
            "%s does not answer (%s); attempt %d of %d at row %d of the %s set follows in %d s.",
            self.source,
            reason,
            failed + 1,
            self.attempts,
            done,
            name,
            wait,
        )
        time.sleep(wait)


def _rows(stream, size: int = 100):
    """The rows of a `datasets.IterableDataset`, read in pieces (ten times faster); each worker gets all, not some shards."""
    for piece in stream.iter(size):
        columns = list(piece.values())
        for values in zip(*columns):
            yield dict(zip(piece, values))


class ForgetRetainStream(Stream):
    """Endless pairs from two streams (`datasets.IterableDataset`).

    Args:
        forget, retain: streams of undecoded rows, as `undecoded` makes them.
        seed: fixes shuffling and every random draw of a pair.
        shuffle_buffer: rows held (undecoded) for shuffling; 0 keeps the order of the source.
        attempts: how often in a row a source is tried that does not answer. source: its name, for messages.
    """

    def __init__(
        self, forget, retain, seed: int = 0, shuffle_buffer: int = 1000, attempts: int = 8, source: str = "The stream's source"
    ):
        super().__init__(seed, shuffle_buffer, attempts, source)
        self.forget, self.retain = self.shuffled(forget, seed), self.shuffled(retain, seed + 1)

    def __iter__(self) -> Iterator[dict | None]:
        for t, (forget, retain) in self.share(zip(self.endless(self.forget, "forget"), self.endless(self.retain, "retain"))):
            pair = {"forget": forget, "retain": retain}
            yield pair | {"seeds": seeds_for(self.seed, t)} if t >= self.start else None


class SingleImageStream(Stream):
    """Endless single pictures from a stream, as `ForgetRetainStream` reads two."""

    def __init__(
        self, images, seed: int = 0, shuffle_buffer: int = 1000, attempts: int = 8, source: str = "The stream's source"
    ):
        super().__init__(seed, shuffle_buffer, attempts, source)
        self.images = self.shuffled(images, seed)

    def __iter__(self) -> Iterator[dict | None]:
        for t, image in self.share(self.endless(self.images, "training")):
            yield {"image": image, "seeds": seeds_for(self.seed, t)} if t >= self.start else None
