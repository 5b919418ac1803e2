"""How a step's clips are cut into pieces that fit into memory and spread over processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE


@dataclass(frozen=True)
class Piece:
    """Clips that go through the backbone together.

    Attributes:
        rows: numbers of the clips in the split.
        places: their places in the step's batch.
        number: of the piece in the step, from which its dropout is drawn, whichever process computes it.
        counts: whether its gradient counts; a process without a piece of its own repeats one that does not, so that
            all processes meet as often.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]
    number: int
    counts: bool = True


def cut(rows: Sequence[int], samples: Sequence[int], batch_seconds: float, processes: int = 1) -> list[list[Piece]]:
    """Pieces of a batch, for each process as many.

    Args:
        rows: numbers of the clips.
        samples: the length of each of these.
        batch_seconds: bound of clips x longest clip in a piece; a longer clip is a piece of its own.
        processes: over how many they are spread.
    """
    share = max(samples) * -(-len(rows) // processes) / SAMPLE_RATE  # so that no process is left without work
    planned = plan_batches(samples, min(batch_seconds, share) if processes > 1 else batch_seconds)
    pieces = [Piece(tuple(rows[i] for i in at), tuple(at), number) for number, at in enumerate(planned)]
    spread = [pieces[i::processes] for i in range(processes)]
    for mine in spread:
        if len(mine) < len(spread[0]):
            last = pieces[-1]
            mine.append(Piece(last.rows[:1], last.places[:1], last.number, counts=False))
    return spread
