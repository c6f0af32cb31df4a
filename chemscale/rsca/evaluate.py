"""How good a run's metrics are: rates, abundance baselines, calibration, correlations (sections 4.2-4.5)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from chemscale.errors import DataError, InputError
from chemscale.rsca.auto_run import AUTO_FIELD, auto_features, load_auto
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.likeness import Likeness, calibrate, held_out_pairs
from chemscale.rsca.pipeline import load_metric
from chemscale.rsca.rates import DoppelgangerRates
from chemscale.rsca.registry import METRICS
from chemscale.rsca.stars import RunStars, check_rows, text
from chemscale.rsca.uncertainty import paired
from chemscale.runtime.run import Run
from chemscale.schema import PAPER_ELEMENTS, PAPER_SUBSET

logger = logging.getLogger(__name__)

#: Field stars of the abundance baselines and correlations, at most.
BASELINE_FIELD = 200_000
#: Labels whose ranges among field stars and members are compared.
COMPARED = ("teff", "logg", "fe_h", "snr")
#: Correlation of a kept feature with temperature or gravity from which on a warning is given.
FOLLOWS = 0.5


def evaluate_run(run_path: str | os.PathLike[str], *, n_features: int = 3) -> dict[str, Any]:
    """Doppelganger rates of a run, leave-one-cluster-out, written to ``evaluation.json``.

    Reads the embedding (some hundred bytes a star), never the spectra. A field too large for memory goes through in
    blocks, two passes a method.

    Parameters
    ----------
    run_path : path
    n_features : int
        Dimensions kept for `rsca_top`.

    Returns
    -------
    dict
        Rates of every metric of :mod:`chemscale.rsca.registry` by name, ``rsca_top`` (the most scaled `n_features`),
        ``auto`` where it was fitted; ``rsca_without_cross_validation``; ``per_cluster`` (cluster -> method -> rate,
        and n_members); counts; ``abundances`` baselines; ``correlations`` of the kept features with labels over the
        field; ``likeness`` of pairs; ``unrated_clusters``, which no field star can be compared with; ``differences`` of
        methods with paired errors; ``ranges`` of labels of field and members; ``warnings``; ``recommended``, the
        metric that siblings, report and page use.

    Raises
    ------
    StoreError
        Not a run, or nothing fitted yet.
    DataError, InputError
        One cluster only, `n_features` beyond K.
    """
    run = Run.open(run_path)
    with run.stage("evaluate", settings={"n_features": n_features}) as stage:
        stars = RunStars.read(run)
        engine = stars.evaluation
        if len(engine.names) < 2:
            raise DataError(
                f"{run.path} knows one cluster, and a rate counts only for a cluster that the metric has not seen",
                f"distances need no rate: `chemscale rsca siblings STAR_ID --run {run.path}`; for rates add clusters",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # clusters without a pair are listed once, below
            rates: dict[str, DoppelgangerRates] = {name: engine.rates(name) for name in METRICS}
            rates["rsca_top"] = engine.rates("rsca", n_features=n_features)
            overfitted = engine.rates("rsca", leave_one_out=False).overall
            alike = likeness(engine, n_features, listed_belonging(run, stars))
            abundances = abundance_baselines(run, stars)
        unrated = [c for c, n in rates["raw"].n_pairs.items() if not n]
        if unrated:
            logger.warning("no field star passes the pair cuts for %s: left out of the averages", ", ".join(unrated))
        result: dict[str, Any] = {name: r.overall for name, r in rates.items()}
        result["rsca_without_cross_validation"] = overfitted
        per_cluster: dict[str, dict[str, Any]] = {
            c: {"n_members": rates["raw"].n_members[c], **{name: r.per_cluster[c] for name, r in rates.items()}}
            for c in engine.names
        }
        if run.has("auto.json"):
            auto = run.load_json("auto.json")
            result["auto"] = auto["rate"]
            for c, value in auto["per_cluster"].items():
                per_cluster[c]["auto"] = value
        result |= {
            "per_cluster": per_cluster,
            "n_field": len(stars.field_rows),
            "n_members": len(stars.member_rows),
            "n_clusters": len(engine.names),
            "n_components": stars.n_components,
            "n_features": n_features,
            "cuts": sorted(stars.covariates.names),
            "leave_one_cluster_out": True,
            "unrated_clusters": unrated,
            "likeness": alike,
            "abundances": abundances,
            "correlations": kept_correlations(run, stars, n_features),
            "differences": differences(rates, run.load_json("auto.json")["per_cluster"] if "auto" in result else None),
            "ranges": compare_ranges(stars.label, stars.field_rows, stars.member_rows),
        }
        result["warnings"] = follows(result["correlations"])
        for message in result["warnings"]:
            logger.warning("%s", message)
        result["recommended"] = recommend(result)
        run.save_json("evaluation.json", result)
        stage.note(**{k: result[k] for k in (*METRICS, "rsca_top", "auto") if k in result})
    return run.load_json("evaluation.json")


def listed_belonging(run: Run, stars: RunStars) -> np.ndarray | None:
    """1 or 0 for every listed member (n_members,): whether the run's searched metric takes it for one.

    None where the run has no searched metric: then nothing but the list says who is a member.
    """
    if not run.has("auto.json"):
        return None
    doubtful = [d["star_id"] for d in run.load_json("auto.json").get("doubtful_members", ())]
    ids = text(stars.embedding["star_id"][stars.member_rows])
    return np.where(np.isin(ids, doubtful), 0.0, 1.0)


def likeness(engine: Evaluation, n_features: int, belonging: np.ndarray | None = None) -> dict[str, Any]:
    """Likeness of pairs under RSCA, from pairs of held-out clusters; {} where there are too few pairs.

    Pairs of members that do not belong (`belonging`, (n_members,) of 0 and 1) are no evidence; by default all belong,
    and ``list_taken_at_its_word`` says so. ``slope_eq5`` is the slope that eq. (5) as it is would need.
    """
    n_pairs = sum(len(g) * (len(g) - 1) // 2 for g in engine.groups)
    if n_pairs < 50 or not isinstance(engine.field, np.ndarray):
        return {}
    pairs = held_out_pairs(engine, n_features=n_features, belonging=belonging)
    try:
        found = Likeness.fit(pairs.by_cluster, n_features).to_json()
    except (DataError, InputError) as err:
        logger.warning("no likeness of pairs: %s", err.message)
        return {}
    word = {"list_taken_at_its_word": belonging is None}
    return found | word | {"slope_eq5": calibrate(pairs.sibling_ratio, pairs.field_ratio).slope}


def differences(rates: dict[str, DoppelgangerRates], auto: dict[str, float] | None) -> dict[str, list[float]]:
    """Paired differences of methods, ``"a - b": [difference, standard error over clusters]``."""
    values = {name: r.per_cluster for name, r in rates.items()} | ({"auto": auto} if auto else {})
    weights = next(iter(rates.values())).n_members
    pairs = [("rsca", "raw"), ("rsca_top", "rsca"), ("auto", "rsca"), ("auto", "rsca_top")]
    return {f"{a} - {b}": list(paired(values[a], values[b], weights)) for a, b in pairs if a in values and b in values}


def recommend(result: Mapping[str, Any]) -> dict[str, Any]:
    """The run's recommended metric: the searched one, unless the paper's is better by more than the paired error.

    The paper's metric keeps `n_features` dimensions (section 4.4: those free of trends with velocity).
    """
    if "auto" in result:
        difference, error = result["differences"]["auto - rsca_top"]
        if difference <= error:
            return {"metric": "auto", "rate": result["auto"], "why": "chosen by nested cross-validation"}
        why = f"the searched metric is worse by {difference:.4f} +- {error:.4f}"
    else:
        why = "the only one fitted; `rsca fit --metric auto` searches for a better one"
    return {"metric": "paper", "n_features": result["n_features"], "rate": result["rsca_top"], "why": why}


def compare_ranges(label: Callable[[str], np.ndarray | None], field: Any, members: Any) -> dict[str, dict[str, Any]]:
    """5th, 50th and 95th percentile of labels among field stars and members, and the share of field in the members'.

    Rates are those of a field like the members': where the field spans other temperatures, strangers are told apart
    by what is not chemistry.
    """
    out: dict[str, dict[str, Any]] = {}
    for name in COMPARED:
        values = label(name)
        if values is None:
            continue
        sides = [v[np.isfinite(v)] for v in (values[field], values[members])]
        if min(map(len, sides)) < 2:
            continue
        low, high = sides[1].min(), sides[1].max()
        out[name] = {
            "field": np.percentile(sides[0], [5, 50, 95]).tolist(),
            "members": np.percentile(sides[1], [5, 50, 95]).tolist(),
            "field_inside": float(np.mean((sides[0] >= low) & (sides[0] <= high))),
        }
    return out


def follows(correlations: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    """Warnings: kept features that follow temperature or gravity instead of chemistry."""
    out = []
    for metric, by_label in correlations.items():
        for name in ("teff", "logg"):
            for i, r in enumerate(by_label.get(name, [])):
                if abs(r) > FOLLOWS:
                    out.append(
                        f"feature {i + 1} of {metric} follows {name} over the field (r = {r:+.2f}): rates are those of "
                        "a field unlike the members; narrow both with --where teff=LOW:HIGH"
                    )
    return out


def kept_correlations(run: Run, stars: RunStars, n_features: int) -> dict[str, dict[str, list[float]]]:
    """Correlation over the field of each kept feature with velocity and extinction (should be small) and chemistry."""
    names = ("radial_velocity", "extinction", "fe_h", "alpha_m", "teff", "logg")
    step = max(1, len(stars.field_rows) // BASELINE_FIELD)
    picked = np.asarray(stars.field[::step])
    features = load_metric(run).transform(picked, n_features)
    out = {"rsca": stars.correlations(features, stars.field_rows[::step], names)}
    if run.has("auto.zarr"):
        other = RunStars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD)
        metric, detrendings = load_auto(run)
        features = auto_features(metric, detrendings, np.asarray(other.field), other, other.field_rows, n_features)
        out["auto"] = other.correlations(features, other.field_rows, names)
    return out


def abundance_baselines(run: Run, stars: RunStars) -> dict[str, dict[str, Any]]:
    """Rates of the survey's own abundances (section 4.5): all of the paper's species, and its subset of seven.

    A set is left out where its species are not defined for two members of at least two clusters. Stars without all of
    them take no part.
    """
    from chemscale.survey.store.open import open_survey

    survey = open_survey(run.store)
    if "abundance" not in survey.variables or "element" not in survey.variables:
        return {}
    check_rows(survey, stars.embedding)
    elements = [str(e) for e in survey["element"].values]
    step = max(1, len(stars.field_rows) // BASELINE_FIELD)
    field_rows = stars.field_rows[::step]
    rows = np.concatenate([field_rows, stars.member_rows])
    values = np.asarray(survey["abundance"].values, dtype=np.float64)[rows]
    n = len(field_rows)
    known = np.isfinite(values[n:]).mean(axis=0) > 0.5
    sets = {
        "all": [e for e in PAPER_ELEMENTS if e in elements and known[elements.index(e)]],
        "subset": [e for e in PAPER_SUBSET if e in elements and known[elements.index(e)]],
    }
    out: dict[str, dict[str, Any]] = {}
    for name, species in sets.items():
        if len(species) < 2 or (name == "subset" and len(species) < len(PAPER_SUBSET)):
            continue
        x = values[:, [elements.index(e) for e in species]]
        if name == "subset":  # with respect to iron, iron itself to hydrogen
            iron = x[:, species.index("Fe")].copy()
            x = x - np.where(np.array(species) == "Fe", 0.0, iron[:, None])
        try:
            engine = _complete(stars, x, n, step)
            out[name] = {m: engine.rates(m).overall for m in METRICS}
        except DataError as err:
            logger.info("abundance baseline %s left out: %s", name, err.message)
            continue
        out[name] |= {"species": species, "n_members": len(engine.members), "n_field": int(engine.field.shape[0])}
    return out


def _complete(stars: RunStars, x: np.ndarray, n: int, step: int) -> Evaluation:
    """An evaluation of the stars for which all of `x` is finite."""
    good = np.isfinite(x).all(axis=1)
    names, counts = np.unique(stars.clusters[good[n:]], return_counts=True)
    members = good[n:] & np.isin(stars.clusters, names[counts >= 2])
    covariates = stars.covariates.at(slice(None, None, step)).at(good[:n], members)
    return Evaluation(x[:n][good[:n]], x[n:][members], stars.clusters[members], covariates)
