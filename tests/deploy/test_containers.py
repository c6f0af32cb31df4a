"""The CPU image, built without a container engine's daemon, and the demo inside it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest


def test_files_named_in_the_definitions_exist(deploy):
    root = deploy.parent
    for file in ("Containerfile", "Containerfile.cuda"):
        for line in (deploy / "containers" / file).read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                assert all((root / source).exists() for source in line.split()[1:-1]), line
    text = (deploy / "containers/chemscale.def").read_text()
    for line in text[text.index("%files") : text.index("%post")].splitlines()[1:]:
        if line.strip():
            assert (root / line.split()[0]).exists(), line


def test_extras_named_for_users_exist(deploy):
    """pip only warns of an extra that is not there."""
    known = set(tomllib.loads((deploy.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set()
    for file in deploy.rglob("*"):
        if file.is_file():
            for group in re.findall(r"(?:chemscale|[\"'\s]\.)\[([a-z0-9,]+)\]", file.read_text()):
                named |= set(group.split(","))
    assert {"s3", "gpu", "hpc"} <= named <= known


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(
    os.environ.get("CHEMSCALE_TEST_CONTAINER") != "1", reason="set CHEMSCALE_TEST_CONTAINER=1 (20 minutes)"
)
def test_build_and_demo(deploy, tmp_path):
    """A debootstrap base, the image on it, `chemscale demo --tiny` in the image."""
    lacking = [p for p in ("buildah", "debootstrap") if shutil.which(p) is None]
    if lacking or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(lacking) or 'nothing else'}")
    root = tmp_path / "root"
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root))
    tar = tmp_path / "base.tar"
    run("tar", "-C", str(root), "-cf", str(tar), ".")
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "runroot"), "--storage-driver", "vfs"]
    base = output("buildah", *storage, "from", "scratch").strip()
    run("buildah", *storage, "add", base, str(tar), "/")
    run("buildah", *storage, "commit", base, "localhost/base")
    # for example --volume /wheels:/wheels:ro --build-arg PIP_ARGS=--find-links=/wheels
    arguments = shlex.split(os.environ.get("CHEMSCALE_TEST_BUILD_ARGS", ""))
    run(
        "buildah", *storage, "bud", "--isolation=chroot", "--pull=never",
        "--build-arg", "BASE=localhost/base", *arguments,
        "-f", str(deploy / "containers/Containerfile"), "-t", "localhost/chemscale", str(deploy.parent),
    )  # fmt: skip
    made = output("buildah", *storage, "from", "--pull=never", "localhost/chemscale").strip()
    inside = ["buildah", *storage, "run", "--isolation=chroot", made, "--"]
    assert output(*inside, "chemscale", "--version").startswith("chemscale ")
    assert output(*inside, "id", "-u").strip() == "1000"
    run(*inside, "chemscale", "demo", "--tiny", "--out", "/data/demo")


def run(*command: str) -> None:
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.STDOUT)
    assert done.returncode == 0, command


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
