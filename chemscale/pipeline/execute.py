"""Run the stages of a pipeline: a process each, one cluster for all, retried, recorded, resumable."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from chemscale.errors import ChemscaleError
from chemscale.pipeline.file import MAKES_STORE, STATE, Pipeline, Stage, select
from chemscale.runtime import credentials
from chemscale.runtime.cluster import Terminated, connect, graceful_signals
from chemscale.runtime.jsonio import write_json
from chemscale.runtime.observe import (
    forget_peaks,
    human_seconds,
    performance_report,
    storage_speed,
    summary_line,
    worker_peaks,
)
from chemscale.runtime.run import Run, versions
from chemscale.runtime.settings import BatchSettings, ClusterSettings

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

#: Stages that read every pixel once or more: their rate is compared with the storage's.
READS_PIXELS = ("fit", "embed", "infer")
#: Exit statuses that would be the same again: bad input, damaged store, unsuitable data, another job.
HOPELESS = (2, 3, 4, 5)
#: Seconds a stage has to end after SIGTERM before it is killed.
GRACE_SECONDS = 25.0


class StageFailed(ChemscaleError):
    """A stage ended badly after its last attempt; what came before it is kept."""

    def __init__(self, message: str, remedy: str = "", exit_code: int = 1):
        super().__init__(message, remedy)
        self.exit_code = exit_code

    def __reduce__(self):
        return type(self), (self.message, self.remedy, self.exit_code)


def run(
    pipeline: Pipeline, *, first: str | None = None, last: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Run the stages that are not done.

    Parameters
    ----------
    first, last : str, optional
        Only the stages from one to another. `first` is run even if it is done.
    force : bool
        Run every chosen stage again.

    Returns
    -------
    dict
        Stage name -> entry of ``pipeline.json`` (status, seconds, attempts, ...).

    Raises
    ------
    StageFailed
        A stage failed for good; its exit status is that of the stage.
    """
    chosen = select(pipeline, first, last)
    todo = [s for s in chosen if force or not pipeline.done(s) or s.name == first]
    for stage in chosen:
        if stage not in todo:
            logger.info("%s: done already", stage.name)
    if not todo:
        return pipeline.state
    Run.create(pipeline.run, store=pipeline.store_path)
    with ExitStack() as stack:
        stack.enter_context(graceful_signals())
        client, spec = None, None
        if pipeline.cluster is not None and any(s.takes_cluster for s in todo):
            client, spec = _cluster(pipeline.cluster, stack)
        for stage in todo:
            redo = force or (stage.name == first and pipeline.done(stage))
            _run_stage(pipeline, stage, client, spec, redo=redo)
    return pipeline.state


def _cluster(settings: ClusterSettings, stack: ExitStack) -> tuple[Client, str]:
    """One cluster for every stage, and the file that tells the stages how to join it.

    The file and the credentials are in a 0700 directory that goes with the pipeline.
    """
    if settings.kind == "kubernetes":  # port forwarded to loopback, no certificate
        directory: Path | None = None
    elif settings.kind == "address":
        directory = Path(settings.tls) if isinstance(settings.tls, str) else None
    else:
        shared = settings.shared_directory if isinstance(settings, BatchSettings) else None
        directory = credentials.temporary(shared or _private_scratch(stack))
        stack.callback(credentials.discard, directory)
        settings = replace(settings, tls=str(directory))
    client = stack.enter_context(connect(settings))
    file = Path(_private_scratch(stack)) / "cluster.toml"
    lines = ["[cluster]", 'kind = "address"', f'address = "{client.scheduler.address}"']  # type: ignore[union-attr]
    if directory is not None:
        lines.append(f'tls = "{directory}"')
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    logger.info("cluster: %s", client.scheduler.address)  # type: ignore[union-attr]
    return client, str(file)


def _private_scratch(stack: ExitStack) -> str:
    import tempfile

    return stack.enter_context(tempfile.TemporaryDirectory(prefix="chemscale-run-"))  # mode 0700


def _run_stage(pipeline: Pipeline, stage: Stage, client: Client | None, spec: str | None, *, redo: bool) -> None:
    resume = pipeline.begun(stage) and not redo
    entry: dict[str, Any] = {
        "fingerprint": stage.fingerprint,
        "command": ["chemscale", *stage.arguments],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "attempts": 0,
        "versions": versions(),
    }
    known_before = stage.name in pipeline.state
    pipeline.state[stage.name] = entry
    _save(pipeline)
    if client is not None:
        _about_workers(client, forget_peaks)
    begun = time.monotonic()
    for attempt in range(1, pipeline.retries + 2):
        entry["attempts"] = attempt
        arguments = list(stage.arguments)
        if stage.takes_cluster and spec:
            arguments += ["--cluster", spec]
        carry_on = resume or attempt > 1
        if carry_on and stage.can_resume:
            arguments.append("--resume")
        elif (carry_on or redo or known_before) and stage.can_overwrite and "--overwrite" not in arguments:
            arguments.append("--overwrite")
        logger.info("%s: chemscale %s", stage.name, " ".join(arguments))
        try:
            with performance_report(client, pipeline.run / "performance" / f"{stage.name}.html"):
                status = _process(pipeline, stage.name, arguments)
        except BaseException:
            entry |= {"status": "stopped", "wall_s": round(time.monotonic() - begun, 3)}
            _save(pipeline)
            raise
        entry |= {"exit_status": status, "wall_s": round(time.monotonic() - begun, 3)}
        if status == 0:
            break
        entry["status"] = "failed"
        _save(pipeline)
        if status in HOPELESS or attempt > pipeline.retries:
            raise StageFailed(
                f"stage {stage.name} ended with status {status} after {attempt} attempt(s)",
                f"its output: {log_of(pipeline, stage.name)}; `chemscale run {pipeline.file}` carries on",
                exit_code=status if status in HOPELESS else 1,
            )
        logger.warning(
            "%s ended with status %d; trying again (%d of %d)", stage.name, status, attempt, pipeline.retries
        )
        time.sleep(min(30.0, 2.0**attempt))
    entry["status"] = "done"
    if client is not None:
        entry["worker_peak_bytes"] = _about_workers(client, worker_peaks)
    _save(pipeline)
    facts = {"stage": stage.name} | {k: entry[k] for k in ("wall_s", "attempts", "worker_peak_bytes") if k in entry}
    logger.info("%s", _summary(pipeline, stage, entry["wall_s"]), extra={"facts": facts})


def _about_workers(client: Client, question: Callable[[Client], Any]) -> Any:
    """Ask the workers; None where they can't be asked: the cluster's health must not undo a stage that is done."""
    try:
        return question(client)
    except Exception as err:
        logger.debug("worker memory: %s", err)
        return None


def _save(pipeline: Pipeline) -> None:
    write_json(pipeline.run / STATE, {"pipeline": str(pipeline.file), "stages": pipeline.state})


def log_of(pipeline: Pipeline, name: str) -> Path:
    """Where a stage's output is kept."""
    return pipeline.run / "logs" / f"{name}.log"


def _process(pipeline: Pipeline, name: str, arguments: list[str]) -> int:
    """Run ``chemscale ARGUMENTS`` in the pipeline's folder; its output goes to this stderr and to a log."""
    command = [sys.executable, "-m", "chemscale", *arguments]
    log_file = log_of(pipeline, name)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr.isatty()
    with open(log_file, "ab") as log:
        child = subprocess.Popen(
            command,
            cwd=pipeline.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if terminal else subprocess.PIPE,  # a terminal gets the bars, a log gets the lines
        )
        copier = None
        if child.stderr is not None:
            copier = threading.Thread(target=_copy, args=(child.stderr, log), daemon=True)
            copier.start()
        try:
            return child.wait()
        except BaseException as err:
            _stop(child, terminated=isinstance(err, Terminated))
            raise
        finally:
            if copier is not None:
                copier.join(timeout=5)


def _copy(stream: IO[bytes], log: IO[bytes]) -> None:
    for line in stream:
        log.write(line)
        log.flush()
        sys.stderr.buffer.write(line)
        sys.stderr.flush()


def _stop(child: subprocess.Popen[bytes], *, terminated: bool) -> None:
    """Let the stage leave in good order (it marks what is finished), then make sure of it."""
    if terminated:
        child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def store_size(pipeline: Pipeline) -> dict[str, Any] | None:
    """Stars, pixels and bytes of the pipeline's store; None while there is none."""
    from chemscale.survey.info import store_info

    try:
        return store_info(pipeline.store_path)
    except (ChemscaleError, OSError):
        return None


def _summary(pipeline: Pipeline, stage: Stage, seconds: float) -> str:
    facts = store_size(pipeline)
    if facts is None or stage.name not in (*MAKES_STORE, *READS_PIXELS):
        return f"{stage.name}: done in {human_seconds(seconds)}"
    stars = int(facts["n_stars"])
    if stage.name in MAKES_STORE:
        return summary_line(stage.name, stars, "stars", seconds)
    limit = storage_speed(pipeline.store_path, seconds=1.0)
    return summary_line(stage.name, stars, "stars", seconds, int(facts["size_bytes"]), limit)
