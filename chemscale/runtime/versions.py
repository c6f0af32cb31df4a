"""Products in object stores, which cannot rename: versions side by side, and one small object that says which counts.

``NAME/current.json`` names the version that readers open (a folder beside it) and the plan it was made by. Putting
this object is the switch. The version before stays until the next switch, for readers that have it open.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder, is_remote
from chemscale.runtime.jsonio import dump

CURRENT = "current.json"
_FOLDER = "version-"


class Versions:
    """The versions of one product.

    Parameters
    ----------
    target : str
        URL of the product.
    """

    def __init__(self, target: str):
        self.folder = Folder(target)

    def current(self) -> dict[str, Any]:
        """``version``, the folder that readers open, ``before``, the last one, and ``plan``; {} where nothing counts.

        Raises
        ------
        StoreError
            The object is damaged.
        """
        try:
            content = json.loads(self.folder.read(CURRENT))
            _ = content["version"], content["plan"]
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as err:
            raise StoreError(f"{self.folder.where(CURRENT)}: damaged ({err})", "make the product again") from err
        return content

    def new(self) -> str:
        """Name of a version that nobody has."""
        return f"{_FOLDER}{uuid.uuid4().hex[:12]}"

    def where(self, version: str) -> str:
        """URL of a version."""
        return self.folder.where(version)

    def publish(self, version: str, plan: Mapping[str, Any]) -> None:
        """Readers open `version` from now on; only it and the one before stay."""
        before = self.current().get("version")
        self.folder.write(CURRENT, dump({"version": version, "before": before, "plan": plan}))
        self.clear(version, before)
        if before is None:  # a product that release 8de129b wrote in place
            for name in self.folder.list():
                if name != CURRENT and not name.startswith(_FOLDER):
                    self.folder.remove(name)
                    self.folder.remove_tree(name)

    def clear(self, *keep: str | None) -> None:
        """Remove versions, but those that count, the one before and those named."""
        counts = self.current()
        stay = {*keep, counts.get("version"), counts.get("before")}
        for name in self.folder.list():
            if name.startswith(_FOLDER) and name not in stay:
                self.folder.remove_tree(name)


def opened_at(target: str) -> str:
    """Where readers open a product: itself, or the version that counts in an object store."""
    if not is_remote(target):
        return target
    versions = Versions(target)
    version = versions.current().get("version")
    return versions.where(version) if version else target
