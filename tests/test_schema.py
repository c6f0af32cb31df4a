"""The data contract: every breach is named."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from chemscale import schema
from chemscale.schema import Flag, SchemaError


def dataset(n: int = 3, p: int = 5) -> xr.Dataset:
    ds = xr.Dataset(
        {
            "flux": (("star", "wavelength"), np.ones((n, p), "f4")),
            "ivar": (("star", "wavelength"), np.ones((n, p), "f4")),
            "flags": (("star", "wavelength"), np.zeros((n, p), "u1")),
        },
        coords={
            "wavelength": ("wavelength", np.linspace(15000.0, 17000.0, p)),
            "star_id": ("star", np.array([f"s{i}" for i in range(n)], dtype=object)),
        },
    )
    for name in ds.variables:
        ds[name].attrs |= schema.variable_attrs(str(name))
    ds["wavelength"].attrs["medium"] = "vacuum"
    return ds


def test_a_dataset_that_obeys_the_contract_passes():
    assert schema.check(dataset()) == []
    assert schema.validate(dataset()).sizes["star"] == 3


BREACHES = {
    "missing variable": (lambda ds: ds.drop_vars("ivar"), "ivar: missing"),
    "wrong dims": (lambda ds: ds.assign(flux=ds.flux.T), "flux: dims"),
    "wrong dtype": (lambda ds: ds.assign(flux=ds.flux.astype("f8")), "flux: dtype is float64"),
    "text expected": (lambda ds: ds.assign_coords(star_id=("star", np.arange(3))), "star_id: dtype"),
    "unknown variable": (lambda ds: ds.assign(fluks=ds.flux), "fluks: not in the contract"),
    "duplicate ids": (
        lambda ds: ds.assign_coords(star_id=("star", np.array(["a", "a", "b"], dtype=object))),
        "star_id: 1 duplicate identifier(s), e.g. 'a'",
    ),
    "empty id": (
        lambda ds: ds.assign_coords(star_id=("star", np.array(["", "a", "b"], dtype=object))),
        "star_id: 1 empty",
    ),
    "wavelength not increasing": (
        lambda ds: ds.assign_coords(wavelength=ds.wavelength[::-1].variable),
        "wavelength: must be finite and strictly increasing",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_is_named(name):
    change, expected = BREACHES[name]
    with pytest.raises(SchemaError) as err:
        schema.validate(change(dataset()))
    assert expected in str(err.value)


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("wavelength", "units", "nm", "wavelength: units are 'nm'"),
        ("wavelength", "medium", "water", "`medium` must be"),
        ("flags", "flag_masks", [1, 2], "flags: attribute `flag_masks`"),
    ],
)
def test_attributes_are_checked(name, key, value, expected):
    ds = dataset()
    ds[name].attrs[key] = value
    assert any(expected in p for p in schema.check(ds))


def test_all_breaches_are_listed_at_once():
    ds = dataset().drop_vars("ivar")
    ds["flux"] = ds.flux.astype("f8")
    with pytest.raises(SchemaError) as err:
        schema.validate(ds)
    assert len(err.value.problems) == 2


@given(st.sets(st.sampled_from([str(f.name).lower() for f in Flag])))
def test_flag_mask_is_the_union_of_its_names(names):
    expected = sum(int(Flag[n.upper()]) for n in names)
    assert schema.flag_mask(names) == expected


def test_flag_mask_refuses_unknown_names():
    assert schema.flag_mask("all") == sum(int(f) for f in Flag)
    with pytest.raises(ValueError, match="unknown pixel flag 'cosmic'; known flags: gap"):
        schema.flag_mask(["cosmic"])


def test_flags_fit_their_dtype():
    assert np.iinfo("u1").max >= schema.ALL_FLAGS
    assert len(schema.PAPER_ELEMENTS) == 21
    assert set(schema.PAPER_SUBSET) <= set(schema.PAPER_ELEMENTS)
