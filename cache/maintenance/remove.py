"""Remove clips by their ids, so that their bytes leave the disk: of people who withdraw their consent."""

import glob
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from cache.containers.container import Container
from cache.errors import CacheWriteError, DamagedCacheError
from cache.index import load_index
from cache.maintenance.rewrite import alone, first_holders, rewrite
from cache.maintenance.verify import Progress, open_damaged, verify
from cache.paths import StrPath


@dataclass(kw_only=True)
class RemovalSummary:
    """What a removal did.

    Attributes:
        removed: ids of the clips that are gone.
        unknown: ids that the cache does not hold.
        clips: that the cache holds now.
        changed: whether anything was written or removed, such as what an earlier run left.
        aside: further caches beside the file, from which clips were removed as well.
    """

    removed: list[str]
    unknown: list[str]
    clips: int
    changed: bool
    aside: list[str] = field(default_factory=list)


def remove(
    path: StrPath, ids: Collection[str], on_progress: Progress | None = None, on_rewrite: Progress | None = None
) -> RemovalSummary:
    """Write every segment that holds one of the clips anew without it, and remove the old ones and what crashes left.

    Killed at any moment and called again, it ends the same. The cache is verified first, so that no damage is copied.

    Args:
        path: `NAME.zarr` or `NAME.h5`.
        ids: of the clips, as the cache has them.
        on_progress: called while the cache is verified.
        on_rewrite: called while segments are written anew.

    Raises:
        CacheLockedError: another process writes the cache.
        CacheWriteError: no room or no right; says whether bytes are still there.
        DamagedCacheError: something is damaged; nothing was changed.
    """
    with alone(path) as container:
        header, index = open_damaged(container)
        before, wanted = first_holders(index.segments), set(ids)
        groups = [[segment] for segment in index.segments if not wanted.isdisjoint(segment.ids)]
        holding = {(segment.name, clip_id) for (segment,) in groups for clip_id in wanted.intersection(segment.ids)}
        holders = first_holders(index.segments, holding)
        changed = bool(groups or index.replaced or index.broken or index.lost or container.leftovers()[0])
        if changed:
            if not verify(path, on_progress).sound:
                raise DamagedCacheError(
                    f"{container.path} is damaged, and was left as it is; `emi cache verify {container.path}` says "
                    f"where, `emi cache repair {container.path}` drops what is damaged; then remove clips again"
                )
            rewrite(container, header, index.replaced, groups, holders, on_rewrite)
            if load_index(container, header).replaced or container.leftovers()[0]:
                raise CacheWriteError(
                    f"{container.path}: the clips do not count any more, but not all of their bytes could be removed; "
                    "mend the permission, then run the same command again"
                )
        aside = _remove_aside(container, wanted)
    known = before.keys() | {clip_id for summary in aside.values() for clip_id in summary.removed}
    return RemovalSummary(
        removed=[clip_id for clip_id in dict.fromkeys(ids) if clip_id in known],
        unknown=[clip_id for clip_id in dict.fromkeys(ids) if clip_id not in known],
        clips=len(holders),
        changed=changed or any(summary.changed for summary in aside.values()),
        aside=[place for place, summary in aside.items() if summary.removed],
    )


def _remove_aside(container: Container, ids: Collection[str]) -> dict[str, RemovalSummary]:
    """Remove clips from the folders that were put aside beside an HDF5 file (`cache.containers.hdf5_file`)."""
    if not container.one_writer:
        return {}
    place = Path(os.path.realpath(container.path))
    folders = sorted(place.parent.glob(f"{glob.escape(place.name)}.stopped-*.zarr"))
    return {str(folder): remove(folder, ids) for folder in folders}
