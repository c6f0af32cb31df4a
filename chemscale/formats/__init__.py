"""Files as arrays and tables read by rows: FITS, NumPy archives, HDF5, Zarr, text. Nothing here knows a survey."""
