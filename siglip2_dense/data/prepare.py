"""The published data sets: fetched, laid out as the package reads them, and verified."""

from __future__ import annotations

from pathlib import Path

from siglip2_dense.data.download import fetch
from siglip2_dense.data.recipes import OWN, RECIPES, find_root, require_known
from siglip2_dense.data.verify import verify
from siglip2_dense.errors import UserError


def prepare(name: str, root: str | Path | None = None) -> bool:
    """Fetch and lay out what is missing of a data set, then verify it; returns whether all is well.

    It can be interrupted and called again. Archives stay in the folder "downloads" beside the root. Raises UserError
    when a part has to be fetched by hand, once all the others are there.
    """
    require_known(name)
    if name == "generated":
        print("generated: the scenes are made as they are read; there is nothing to prepare.")
        return True
    if name in OWN:
        raise UserError(
            f"a folder of your own is not downloaded: lay it out as {OWN[name]}, then run "
            f"`siglip2-dense data verify {name} --root DIR`."
        )
    recipe, root = RECIPES[name], find_root(name, root)
    downloads = root.parent / "downloads"
    for archive in recipe.archives:
        if not (root / archive.makes).exists():
            path = downloads / archive.url.rpartition("/")[2]
            archive.use(fetch(archive.url, path, archive.size, archive.md5), root)
    for derived in recipe.derived:
        if not (root / derived.makes).exists() and (root / derived.needs).exists():
            derived.make(root)
    for part in recipe.by_hand:
        if not any(root.glob(part.makes)):
            raise UserError(
                f"{name}: {part.how.format(root=root)}, and run `siglip2-dense data prepare {name} --root {root}`."
            )
    whole = verify(name, root)
    if whole and downloads.is_dir() and any(downloads.iterdir()):
        print(f"The archives in {downloads} are no longer needed.")
    return whole
