"""What the surveys of one file a star have in common: folders of spectra and a membership table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from chemscale.survey.sources.base import Rejection, absent_member
from chemscale.survey.sources.formats.paths import printable
from chemscale.survey.sources.members import Membership, read_members


def as_list(value: Any) -> list[str]:
    """No path, one, or several, as a list of text."""
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return [str(value)]
    return [str(v) for v in value]


class FolderSource:
    """Settings of a source whose stars lie in folders and may be members of clusters.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s).
    members : str or None
        Membership table.
    member_key, member_column : str
        Its columns with the identifier and the cluster.
    probability_column, min_probability : optional
        As for :func:`~chemscale.survey.sources.members.read_members`.
    """

    name = ""

    def __init__(
        self,
        spectra: str | Sequence[str],
        members: str | None,
        *,
        member_key: str,
        member_column: str,
        probability_column: str | None,
        min_probability: float | None,
    ):
        self.spectra = as_list(spectra)
        self.members = str(members) if members else None
        self.member_key, self.member_column = member_key, member_column
        self.probability_column, self.min_probability = probability_column, min_probability

    def describe(self) -> dict[str, Any]:
        """Settings, JSON-able."""
        return {"source": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def _probability(self) -> tuple[str | None, float | None]:
        """Column and limit of the membership probability; a survey may know better than its user's silence."""
        return self.probability_column, self.min_probability

    def _membership(self) -> Membership:
        if not self.members:
            return Membership()
        column, minimum = self._probability()
        return read_members(
            self.members,
            key=self.member_key,
            column=self.member_column,
            probability_column=column,
            min_probability=minimum,
        )

    def _absent(self, membership: Membership, held: Collection[str], known: Collection[str] = ()) -> list[Rejection]:
        """Members without a spectrum; with `known`, those that are not even in the catalogue are told apart."""
        table, out = printable(str(self.members)), []
        for star, (cluster, _) in membership.stars.items():
            if star not in held:
                lacks = "not in allStar" if known and star not in known else "without a spectrum"
                out.append(absent_member(table, printable(star), cluster, lacks))
        return out
