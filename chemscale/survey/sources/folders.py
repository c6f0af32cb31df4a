"""What the sources have in common: catalogues a user hands over, and folders with one file (or a few) a star."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured_one
from chemscale.catalogues.star_keys import StarKeys
from chemscale.errors import InputError
from chemscale.formats.fits import read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.contents import not_read
from chemscale.survey.sources.file_names import other_survey
from chemscale.survey.sources.files import find_files, id_problem
from chemscale.survey.sources.joining import Joins, complete


def as_list(value: Any) -> list[str]:
    """No path, one, or several, as a list of text."""
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return [str(value)]
    return [str(v) for v in value]


def stem_of(name: str) -> str:
    """``folder/spec-1-a.fits.gz`` -> ``spec-1-a``: what catalogues call a file, with or without folder and suffix."""
    stem = name.strip().rsplit("/", 1)[-1]
    return stem.removesuffix(".gz").removesuffix(".fits")


class JoiningSource:
    """A source whose stars get labels from catalogues and clusters from a membership table.

    Parameters
    ----------
    labels : str or sequence of str
        Catalogues: FITS, CSV, Parquet, VOTable, ECSV.
    label_key : str, optional
        Column with the identifier, or "coordinates"; by default the survey's own keys are looked for.
    match_radius : float
        Of a match by coordinates, arc seconds.
    members : str, optional
        Membership table, in any of these forms.
    member_key, member_column : str, optional
        Its columns with the identifier and the cluster; the survey's own names by default.
    probability_column, min_probability : optional
        As for :func:`~chemscale.catalogues.members.read_members`.
    extra : sequence of str
        Further per-star numbers of the catalogues (or of the table of spectra) to store, as ``x_NAME`` in float64,
        without a conversion of units.
    """

    name = ""
    #: what the survey is called in messages and verbs
    title = ""
    default_member_key: str | None = None
    default_member_column = "cluster"

    def __init__(
        self,
        *,
        labels: str | Sequence[str] = (),
        label_key: str | None = None,
        match_radius: float = 1.0,
        members: str | None = None,
        member_key: str | None = None,
        member_column: str | None = None,
        probability_column: str | None = None,
        min_probability: float | None = None,
        extra: str | Sequence[str] = (),
    ):
        if match_radius <= 0:
            raise InputError(f"the radius of a match is {match_radius}", "give arc seconds above 0")
        self.labels, self.label_key, self.match_radius = as_list(labels), label_key, float(match_radius)
        self.members = str(members) if members else None
        self.member_key = member_key or self.default_member_key
        self.member_column = member_column or self.default_member_column
        self.probability_column, self.min_probability = probability_column, min_probability
        self.extra = tuple(dict.fromkeys(as_list(extra)))

    def describe(self) -> dict[str, Any]:
        """Settings, JSON-able."""
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "uses"}
        if not self.extra:  # as before there were extra columns: an unfinished store is carried on with
            del settings["extra"]
        return {"source": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def _complete(self, plan: SurveyPlan, keys: StarKeys) -> SurveyPlan:
        """`plan` with the catalogues' labels and clusters."""
        joins = Joins(
            tuple(self.labels),
            self.label_key,
            self.match_radius,
            self.members,
            self.member_key,
            self.member_column,
            self.probability_column,
            self.min_probability,
            self.extra,
        )
        return complete(plan, joins, keys)


class FolderSource(JoiningSource):
    """Settings of a source whose stars lie in folders.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s).
    **joins
        As for :class:`JoiningSource`.
    """

    #: what of a file is read, for :func:`~chemscale.survey.sources.contents.not_read`
    uses: tuple[str, ...] = ()

    def __init__(self, spectra: str | Sequence[str], **joins: Any):
        super().__init__(**joins)
        self.spectra = as_list(spectra)

    def _spectra(
        self,
        accept: Callable[[str], object],
        rejected: list[Rejection],
        *,
        expected: str,
        star_of: Callable[[str], str] = stem_of,
    ) -> Iterator[tuple[str, str, str]]:
        """(star, path, path below the folder) of the files that hold a star each.

        Names that cannot name a star, and files of a star that was found before, go to `rejected`.

        Raises
        ------
        InputError
            A folder holds none; the message says what names were `expected`, and whose files lie there instead.
        """
        seen: dict[str, str] = {}
        for root in self.spectra:
            n_found = 0
            for path, relative in find_files(root, accept, broken=rejected):
                n_found += 1
                star = star_of(relative)
                problem = id_problem(star)
                if star in seen:
                    problem = f"duplicate: this spectrum was already found as {printable(seen[star])}"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=printable(star), stage="plan"))
                    continue
                seen[star] = path
                yield star, path, relative
            if not n_found:
                raise InputError(
                    f"no {self.title.partition(' (')[0]} spectra under {printable(root)}",
                    f"expected {expected}" + other_survey([root], self.name),
                )

    def _complete(self, plan: SurveyPlan, keys: StarKeys) -> SurveyPlan:
        """`plan` with the catalogues' labels and clusters, and with what the files hold besides."""
        if self.uses:
            read, rest = not_read((item.path.partition("#")[0] for item in plan.items), self.uses)
            plan.attrs["read"] = read
            plan.attrs["ignored"] = [*rest, *plan.attrs.get("ignored", ())]
        return super()._complete(plan, keys)

    def _keys(
        self,
        items: Sequence[Item],
        names: Mapping[str, Callable[[], Sequence[str]]],
        *,
        spelled: Mapping[str, Callable[[str], str]] | None = None,
        composed: Mapping[tuple[str, ...], tuple[str, Callable[..., str]]] | None = None,
        catalogued: Collection[str] = (),
        redshift: str = "",
    ) -> StarKeys:
        """What catalogues may call these stars: the survey's names, the file's, and where they stand on the sky."""
        files = {"file": lambda: [stem_of(item.path.partition("#")[0]) for item in items]}
        ids = {"star_id": lambda: [item.star_id for item in items]}
        return StarKeys(
            {**names, **{k: v for k, v in (files | ids).items() if k not in names}},
            {"file": stem_of} | dict(spelled or {}),
            composed or {},
            partial(positions, items),
            catalogued,
            redshift,
        )


def positions(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """(ra, dec) of stars in degrees: from their labels, else from the primary headers of their files."""
    out = np.full((2, len(items)), np.nan)
    for i, item in enumerate(items):
        found = [measured_one(k, item.labels.get(k)) for k in ("ra", "dec")]
        if np.isnan(found).any() and "#" not in item.path:
            header = header_of(item.path)
            found = [measured_one(k, header.get(k.upper())) for k in ("ra", "dec")] if header else found
        out[:, i] = found
    return out[0], out[1]


def header_of(path: str) -> Any:
    """Primary header of a file; None where it cannot be read (reading the star will say why)."""
    try:
        return scan(read_bytes(path))[0].header
    except FitsError:
        return None


def header_texts(items: Sequence[Item], key: str) -> list[str]:
    """A keyword of every star's primary header as text, '' where it has none: one read a file."""
    headers = [header_of(item.path) for item in items]
    return [h.text(key) if h is not None else "" for h in headers]
