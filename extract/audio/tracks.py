"""Choose the audio track of a file that has several."""

import av.container
import av.stream

from extract.errors import MediaError


def choose_track(container: av.container.InputContainer, number: int | None) -> tuple[av.AudioStream, str]:
    """Return the audio track to decode, and where there are several a note which one it is, else "".

    Args:
        container: opened for reading.
        number: of the track among the audio tracks, from 1; None takes the one marked default, else the first.

    Raises:
        MediaError: there is no audio track, or no track of that number.
    """
    tracks = container.streams.audio
    if not tracks:
        raise MediaError("has no audio track")
    if number is not None and number > len(tracks):
        plural = "s" * (len(tracks) > 1)
        raise MediaError(
            f"has {len(tracks)} audio track{plural}, and --track {number} was asked for; give 1 to {len(tracks)}, or "
            "leave it out"
        )
    marked = [i for i, track in enumerate(tracks) if track.disposition & av.stream.Disposition.default]
    chosen = number - 1 if number is not None else marked[0] if marked else 0
    if len(tracks) == 1:
        return tracks[0], ""
    why = "asked for" if number is not None else "marked default" if marked else "the first"
    return tracks[chosen], f"audio track {chosen + 1} of {len(tracks)} ({why})"
