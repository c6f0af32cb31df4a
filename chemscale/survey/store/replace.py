"""Overwriting a store: the new one is made beside the old one and takes its place when it is whole.

Until then readers see the old store; whoever has it open afterwards gets an error, never values of the new one. A
mark in the new store tells it from an old one that is still to be removed, so that an interrupted switch is
carried on from wherever it was.
"""

from __future__ import annotations

import os

from chemscale.errors import StoreError
from chemscale.runtime.exchange import exchange
from chemscale.runtime.files import Folder
from chemscale.survey.store.manifest import LEDGER, ROOT

#: Marks a store that is to take the place of the one beside it.
REPLACING = f"{LEDGER}/replacing"


def beside(folder: Folder) -> Folder:
    """Where the successor of a store is made."""
    return Folder(f"{folder.root}.replacement")


def under_way(folder: Folder) -> bool:
    """Whether a successor of the store in `folder` has been begun and is not in its place."""
    return beside(folder).exists(REPLACING)


def begin(folder: Folder) -> Folder:
    """An empty place for the successor of a store; an earlier one that was begun is thrown away."""
    new = beside(folder)
    new.remove_tree()
    new.write(REPLACING, b"\n", sync=True)
    return new


def put_in_place(folder: Folder) -> None:
    """The finished successor takes the place of the store in `folder`; repeat it when it was interrupted.

    Local directories change places in one step where the system can do that. Elsewhere there is a moment without a
    store, and on object stores one while objects are copied: readers get an error until the root record is there.
    """
    new = beside(folder)
    if not under_way(folder):
        clear(folder)
        return
    if not new.exists(ROOT):
        raise StoreError(f"{new.root}: is not finished", "repeat the command with --resume")
    if folder.remote:
        folder.remove(ROOT)  # readers are told first
        folder.remove_tree()
        names = sorted((n for n, _ in new.walk() if n != REPLACING), key=lambda n: n == ROOT)
        for name in names:
            folder.write(name, new.read(name))
        new.remove(REPLACING)
        new.remove_tree()
        return
    if not folder.exists():
        os.rename(new.root, folder.root)
    elif not exchange(new.root, folder.root):
        old = Folder(f"{folder.root}.replaced")
        old.remove_tree()
        os.rename(folder.root, old.root)
        os.rename(new.root, folder.root)
    clear(folder)


def clear(folder: Folder) -> None:
    """Remove what an interrupted switch left: the old store, then the mark of the new one; nothing without the mark."""
    if not folder.exists(REPLACING):
        return
    for old in (beside(folder), Folder(f"{folder.root}.replaced")):
        old.remove(ROOT)
        old.remove_tree()
    folder.remove(REPLACING)
