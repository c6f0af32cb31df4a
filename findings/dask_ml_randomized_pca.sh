#!/usr/bin/env bash
# dask-ml 2025.1.0: PCA(svd_solver="randomized") fits and then cannot transform beside scikit-learn 1.8.
#
# Expected: what fits transforms; dask-ml 2025.1.0 asks for scikit-learn>=1.2.0 without an upper bound.
# True: fit works with both solvers. transform after "full" works, after "randomized" it raises.
# Source: dask/dask-ml issue 1023.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "dask-ml==2025.1.0" "scikit-learn==1.8.0" "dask[array]==2026.7.1" "numpy==2.4.0"
"$folder/venv/bin/python" - <<'PYTHON'
import dask.array as da
from dask_ml.decomposition import PCA

flux = da.random.default_rng(0).normal(size=(400, 30), chunks=(100, 30))
for solver in ("full", "randomized"):
    model = PCA(n_components=3, svd_solver=solver, random_state=0).fit(flux)
    try:
        shape = model.transform(flux).compute().shape
        print(f"{solver}: transform gives {shape}")
        assert solver == "full", "the randomized solver transforms now"
    except AssertionError:
        raise
    except Exception as error:
        print(f"{solver}: transform raises {type(error).__name__}: {str(error)[:120]}")
        assert solver == "randomized", "the full solver fails too"
PYTHON
