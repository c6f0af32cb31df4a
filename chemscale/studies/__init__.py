"""One module a figure or table of the papers; see :mod:`chemscale.studies.registry`."""
