"""`chemscale run`, `cluster`, `bench`, `doctor`: pipelines and the machines they run on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chemscale.cli.options import AsJson, Cluster

Tls = Annotated[str, typer.Option("--tls", metavar="DIR", help="Directory with cert.pem and key.pem.")]
SchedulerFile = Annotated[
    str, typer.Option("--scheduler-file", metavar="FILE", help="Where the scheduler leaves its address (shared disk).")
]
Interface = Annotated[str | None, typer.Option("--interface", help="Network interface, such as ib0.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    app.command("run")(run)
    cluster = typer.Typer(
        help="A cluster of your own: credentials, scheduler, supervised workers.", no_args_is_help=True
    )
    cluster.command("credentials")(credentials)
    cluster.command("scheduler")(scheduler)
    cluster.command("worker")(worker)
    cluster.command("info")(info)
    app.add_typer(cluster, name="cluster")
    bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
    bench.command("scaling")(scaling)
    bench.command("gpu")(gpu)
    bench.command("scheduler")(saturation)
    app.add_typer(bench, name="bench")
    app.command("doctor")(doctor)


def run(
    file: Annotated[str, typer.Argument(metavar="PIPELINE.toml", help="Stages and their settings.")],
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start here, even if done.")] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show stages, sizes, estimates; run nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run every chosen stage again.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline; what is done already is skipped, what was interrupted carries on.

    Example: chemscale run pipeline.toml --dry-run
    """
    from rich.markup import escape

    from chemscale.cli import command, console, echo_json
    from chemscale.pipeline import execute
    from chemscale.pipeline import file as files
    from chemscale.runtime.observe import setup_logging
    from chemscale.runtime.run import Run

    pipeline = files.load(file, command(), cluster=cluster)
    if dry_run:
        from chemscale.pipeline.plan import plan, render

        planned = plan(pipeline, first=first, last=last)
        if as_json:
            echo_json(planned)
        else:
            render(planned, console)
        return
    Run.create(pipeline.run, store=pipeline.store_path)
    setup_logging(file=pipeline.run / "logs" / "pipeline.jsonl")
    state = execute.run(pipeline, first=first, last=last, force=force)
    if as_json:
        echo_json(state)
        return
    for stage in pipeline.stages:
        entry = state.get(stage.name, {})
        console.print(
            f"{stage.name:10} {entry.get('status', 'not run'):8} {entry.get('wall_s', 0):8.1f} s", highlight=False
        )
    console.print(f"[green]run:[/] {escape(str(pipeline.run))}", highlight=False)


def credentials(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="New directory; only you can read it.")],
    as_json: AsJson = False,
) -> None:
    """Make a certificate and key for a cluster of your own (valid 30 days).

    Example: chemscale cluster credentials ~/tls
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.runtime import credentials as make

    made = str(make.write(directory))
    console.print(f"[green]credentials:[/] {escape(made)}", highlight=False)
    if as_json:
        echo_json({"directory": made})


def _tls_arguments(tls: str) -> list[str]:
    from chemscale.runtime import credentials as files

    files.read(tls)  # refuses what is missing or open to others
    folder = Path(tls).expanduser()
    ca = folder / "ca.pem" if (folder / "ca.pem").is_file() else folder / files.CERT_FILE
    cert, key = folder / files.CERT_FILE, folder / files.KEY_FILE
    return ["--tls-ca-file", str(ca), "--tls-cert", str(cert), "--tls-key", str(key)]


def _host(interface: str | None) -> list[str]:
    """Where to listen: the address of an interface, else loopback. (`dask scheduler --interface` refuses TLS.)"""
    from distributed.utils import get_ip_interface

    from chemscale.errors import ClusterError

    try:
        address = get_ip_interface(interface) if interface else "127.0.0.1"
    except ValueError as err:
        raise ClusterError(f"network interface {interface!r}: {err}", "`ip addr` lists them") from err
    return ["--host", f"tls://{address}"]


def scheduler(
    tls: Tls,
    scheduler_file: SchedulerFile,
    interface: Interface = None,
    port: Annotated[int, typer.Option("--port", help="0 = any free one.")] = 0,
) -> None:
    """Start a scheduler (TLS, dashboard on loopback) and stay with it.

    Example: chemscale cluster scheduler --tls ~/tls --scheduler-file scheduler.json --interface ib0
    """
    import os
    import sys

    arguments = [*_host(interface), "--port", str(port), "--scheduler-file", scheduler_file]
    arguments += ["--dashboard-address", "127.0.0.1:0", *_tls_arguments(tls)]
    os.execv(sys.executable, [sys.executable, "-m", "distributed.cli.dask_scheduler", *arguments])  # noqa: S606


def worker(
    tls: Tls,
    scheduler_file: SchedulerFile,
    interface: Interface = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each process.")] = 1,
    memory: Annotated[str, typer.Option("--memory", help="Memory of each process.")] = "auto",
    lifetime: Annotated[str | None, typer.Option("--lifetime", help="Leave in good order after this long.")] = None,
    stagger: Annotated[str, typer.Option("--lifetime-stagger", help="Not all at once.")] = "2 minutes",
    death_timeout: Annotated[float, typer.Option("--death-timeout", help="Seconds without a scheduler.")] = 120,
    resources: Annotated[str | None, typer.Option("--resources", help='Such as "GPU=1".')] = None,
    local_directory: Annotated[str | None, typer.Option("--local-directory", help="Scratch.")] = None,
) -> None:
    """Start supervised workers: one that loses the scheduler or dies is started again.

    Example: chemscale cluster worker --tls ~/tls --scheduler-file scheduler.json --lifetime 55minutes
    """
    from chemscale.runtime.supervise import main as supervise

    arguments = ["--scheduler-file", scheduler_file, "--nworkers", str(workers), "--nthreads", str(threads)]
    arguments += ["--memory-limit", memory, "--death-timeout", str(death_timeout), "--no-dashboard"]
    arguments += _host(interface)
    if lifetime:
        arguments += ["--lifetime", lifetime, "--lifetime-stagger", stagger]
    if resources:
        arguments += ["--resources", resources]
    if local_directory:
        arguments += ["--local-directory", local_directory]
    raise typer.Exit(supervise([*arguments, *_tls_arguments(tls)]))


def info(
    cluster: Annotated[str, typer.Argument(metavar="SPEC", help="local, an address, or a TOML with [cluster].")],
    as_json: AsJson = False,
) -> None:
    """Connect and say what the cluster is made of.

    Example: chemscale cluster info cluster.toml
    """
    from rich.console import Console

    from chemscale.cli import echo_json
    from chemscale.runtime.backends import describe
    from chemscale.runtime.cluster import connect

    with connect(cluster) as client:
        about = describe(client)
    if as_json:
        echo_json(about)
        return
    shown = Console()
    for key, value in about.items():
        shown.print(f"{key:13} {value}", markup=False, highlight=False)


def _numbers(text: str) -> list[int]:
    from chemscale.errors import InputError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(f"{text!r} is not a list of numbers", "for example 1,2,4")
    return numbers


def scaling(
    workers: Annotated[str, typer.Option("--workers", help="Numbers of workers, such as 1,2,4.")] = "1,2",
    stars: Annotated[int, typer.Option("--stars", min=100, help="Stars (strong), or for each worker (weak).")] = 16384,
    stages: Annotated[
        str, typer.Option("--stages", help="Of ingest, fit, embed, train, infer, anomalies, evaluate.")
    ] = "fit,embed,infer,evaluate",
    mode: Annotated[str, typer.Option("--mode", help="strong, weak or both.")] = "both",
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Best of so many.")] = 1,
    pinned: Annotated[
        bool, typer.Option("--pinned/--unpinned", help="A core for each worker, where there are as many; or any core.")
    ] = True,
    cluster: Cluster = None,
    scratch: Annotated[
        str | None, typer.Option("--scratch", metavar="DIR", help="Keep stores here; a folder that all workers see.")
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the JSON and the plot go.")] = ".",
    tiny: Annotated[bool, typer.Option("--tiny", help="Seconds rather than minutes: checks that it runs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Strong and weak scaling of the real stages on simulated H-band spectra.

    Example: chemscale bench scaling --workers 1,2 --stars 16384 --out benchmarks/results
    """
    import tempfile

    from chemscale.bench import scaling as bench
    from chemscale.cli import console, echo_json

    if tiny:
        stars, stages, mode = 1024, "embed,evaluate", "strong"
    with tempfile.TemporaryDirectory(prefix="chemscale-bench-") as temporary:
        folder = Path(scratch or temporary)
        results: dict[str, Any] = {"rows": [], "serial_fraction": {}, "idle_fraction": {}}
        for one in ("strong", "weak") if mode == "both" else (mode,):
            part = bench.measure(
                _numbers(workers),
                stars,
                folder,
                stages=stages.split(","),
                mode=one,
                repeat=repeat,
                pinned=pinned,
                cluster=cluster,
                report=console.print,
            )
            shares = {key: results[key] | part[key] for key in ("serial_fraction", "idle_fraction")}
            results = part | {"rows": results["rows"] + part["rows"]} | shares
    files = bench.save(results, out, "scaling-tiny" if tiny else "scaling")
    if as_json:
        echo_json(results)
    else:
        for stage, share in results["serial_fraction"].items():
            idle = results["idle_fraction"][stage]
            line = f"{stage}: serial fraction {share:.1%} (Amdahl); no worker at work for {idle:.1%} of the time"
            console.print(line, highlight=False)
        for name in files:
            console.print(f"[green]written:[/] {name}", highlight=False)


def gpu(
    stars: Annotated[int, typer.Option("--stars", min=600, help="Stars of the simulated survey.")] = 65536,
    device: Annotated[str | None, typer.Option("--device", help="cuda:N, or cpu; default: a GPU, if any.")] = None,
    scratch: Annotated[str | None, typer.Option("--scratch", metavar="DIR", help="Keep the survey here.")] = None,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the JSON goes.")] = ".",
    as_json: AsJson = False,
) -> None:
    """What one device could do, measured, and the share of it that inference, training and fit reach.

    Example: chemscale bench gpu --stars 320000 --out benchmarks/results
    """
    import tempfile

    from chemscale.bench import device as bench
    from chemscale.bench import scaling as common
    from chemscale.cli import console, echo_json

    with tempfile.TemporaryDirectory(prefix="chemscale-bench-") as temporary:
        results = bench.measure(stars, Path(scratch or temporary), device, report=console.print)
    files = common.save(results, out, "gpu")
    if as_json:
        echo_json(results)
    else:
        console.print(f"[green]written:[/] {files[0]}", highlight=False)


def saturation(
    workers: Annotated[str, typer.Option("--workers", help="Simulated workers, such as 10,100,300.")] = "10,100,300",
    tasks: Annotated[int, typer.Option("--tasks", min=100, help="Tasks that do nothing.")] = 5000,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the JSON goes.")] = ".",
    as_json: AsJson = False,
) -> None:
    """The scheduler alone: how many tasks a second, and what that means for 10^7 and 10^8 stars.

    Example: chemscale bench scheduler --workers 10,100,300,1000
    """
    from chemscale.bench import saturation as bench
    from chemscale.bench import scaling as common
    from chemscale.cli import console, echo_json

    results = bench.measure(_numbers(workers), tasks, report=console.print)
    results["graphs"] = {f"{n:.0e}": bench.graph_tasks(int(n)) for n in (1e6, 1e7, 1e8)}
    files = common.save(results, out, "scheduler")
    if as_json:
        echo_json(results)
    else:
        console.print(f"[green]written:[/] {files[0]}", highlight=False)


def doctor(
    store: Annotated[str | None, typer.Option("--store", metavar="STORE", help="Check this store too.")] = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, a cluster and a store; exit status 1 when something must be mended.

    Example: chemscale doctor --cluster local --store survey.zarr
    """
    from rich.console import Console
    from rich.markup import escape

    from chemscale.cli import echo_json
    from chemscale.doctor import diagnose

    checks = []
    shown = Console()
    for check in diagnose(cluster=cluster, store=store):
        checks.append(check)
        if not as_json:
            mark = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[bold red]bad [/]"}[check.status]
            shown.print(f"{mark} {check.name:14} {escape(check.found)}", highlight=False, soft_wrap=True)
            if check.remedy:
                shown.print(f"     {'':14} remedy: {escape(check.remedy)}", highlight=False, soft_wrap=True)
    if as_json:
        echo_json([c.to_dict() for c in checks])
    if any(c.status == "bad" for c in checks):
        raise typer.Exit(1)
