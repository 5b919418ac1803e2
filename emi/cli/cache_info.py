"""`emi cache info`: what a cache holds and what it was made with."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLE = "Example: emi cache info features.zarr"


def info(
    path: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a cache holds: clips, hours, size, and the settings and weights it was made with."""
    from cache.reader import open_cache

    with open_cache(path) as store:
        frames = int(store.num_frames.sum())
        facts: dict[str, Any] = {
            "path": store.path,
            "clips": len(store),
            "frames": frames,
            "hours": frames * store.hop_seconds / 3600,
            "segments": len(store.segments),
            "bytes": _size(path),
            "dim": store.dim,
            "vad_names": list(store.vad_names),
            "hop_seconds": store.hop_seconds,
            "fingerprint": store.fingerprint,
            "provenance": dict(store.header.provenance),
        }
    typer.echo(json.dumps(facts, indent=2) if as_json else _text(facts))


def _text(facts: dict[str, Any]) -> str:
    size = f", {facts['bytes'] / 1e6:.1f} MB" if facts["bytes"] is not None else ""
    vad = f" and {', '.join(facts['vad_names'])}" if facts["vad_names"] else ", no valence-arousal-dominance"
    lines = [
        facts["path"],
        f"  {facts['clips']} clips, {facts['hours']:.2f} h ({facts['frames']} frames) in {facts['segments']} segments"
        + size,
        f"  {facts['dim']} features{vad} every {1000 * facts['hop_seconds']:g} ms",
    ]
    for title in ("fingerprint", "provenance"):
        lines.append(f"  {title}")
        lines += [f"    {key:<16} {value}" for key, value in sorted(facts[title].items())]
    return "\n".join(lines)


def _size(path: str) -> int | None:
    """Bytes on the disk; None for a URL."""
    if "://" in path:
        return None
    place = Path(path)
    if place.is_file():
        return place.stat().st_size
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(place) for name in names)
