"""`emi cache info`: what a cache holds and what it was made with."""

import json
from typing import Annotated, Any

import typer


def info(
    path: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a cache holds: clips, hours, size, and the settings and weights it was made with.

    Example: emi cache info features.zarr
    """
    import numpy as np

    from cache.containers.by_suffix import open_container
    from cache.licences import UNKNOWN, licence_of
    from cache.reader import open_cache

    with open_cache(path) as store:
        frames = int(store.num_frames.sum())
        container = open_container(path)
        files, size = container.stored()
        facts: dict[str, Any] = {
            "path": store.path,
            "clips": len(store),
            "frames": frames,
            "modality": store.header.modality,
            "hours": (float(np.nansum(store.seconds)) if store.hop_seconds is None else frames * store.hop_seconds)
            / 3600,
            "segments": len(store.segments),
            "lost_segments": len(store.lost),
            "unsealed_segments": len(container.unsealed()),
            "leftovers": container.leftovers()[0],
            "files": files,
            "bytes": size,
            "compression": "none",
            "dim": store.dim,
            "vad_names": list(store.vad_names),
            "hop_seconds": store.hop_seconds,
            "optional": list(store.header.optional),
            "fingerprint": store.fingerprint,
            "provenance": dict(store.header.provenance),
        }
        licence = licence_of(store.header)
    if licence != UNKNOWN:
        facts["licence"] = licence.to_dict()
    typer.echo(json.dumps(facts, indent=2) if as_json else _text(facts))


def _text(facts: dict[str, Any]) -> str:
    from cache.fingerprint import flattened
    from cache.licences import Licence
    from emi.cli.messages import row_clock

    vad = f" and {', '.join(facts['vad_names'])}" if facts["vad_names"] else ", no valence-arousal-dominance"
    marked = ", with marks of frames in which nothing was found" if "valid" in facts["optional"] else ""
    lines = [
        facts["path"],
        f"  {facts['clips']} clips, {facts['hours']:.2f} h ({facts['frames']} frames) in {facts['segments']} segments",
        f"  {facts['bytes'] / 1e6:.1f} MB in {facts['files']} files, not compressed",
        f"  {facts['dim']} features{vad} {row_clock(facts['hop_seconds'])}{marked}, of modality {facts['modality']}",
        f"  weights: {Licence.from_dict(facts.get('licence'))}",
    ]
    problems = {
        "lost_segments": "segments are missing: emi cache verify",
        "unsealed_segments": "of these segments are not in the file yet, but in a hidden folder beside it; bring them "
        "there: emi cache compact",
        "leftovers": "leftovers of stopped runs are no part of it: emi cache verify",
    }
    lines += [f"  {facts[key]} {problem} {facts['path']}" for key, problem in problems.items() if facts[key]]
    for title in ("fingerprint", "provenance"):
        fields = sorted(flattened(facts[title]).items())
        width = max((len(key) for key, _ in fields), default=0)
        lines += [f"  {title}", *(f"    {key:<{width}}  {value}" for key, value in fields)]
    return "\n".join(lines)
