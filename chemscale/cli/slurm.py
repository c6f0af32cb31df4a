"""`chemscale slurm`: one command on several nodes of a Slurm cluster, as a job script to print, keep or submit."""

from __future__ import annotations

from typing import Annotated

import typer

from chemscale.cli.options import AsJson

#: The script: scheduler and supervised workers inside one allocation, TLS between the nodes, then the command.
SCRIPT = """#!/bin/bash
# {command}
# on {nodes} node(s): one scheduler, {processes} worker process(es) of one thread on each node, TLS between them
#SBATCH --job-name=chemscale
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={processes}
#SBATCH --mem={memory}
#SBATCH --time={time}
#SBATCH --signal=B:TERM@120
{directives}set -uo pipefail
{prologue}
interface=${{CHEMSCALE_INTERFACE:-{interface}}}  # the network between the nodes: `ip addr` lists them
dir=$(mktemp -d "${{CHEMSCALE_SHARED:-$HOME}}/.chemscale-XXXXXX") && chmod 700 "$dir"
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$dir"' EXIT
chemscale cluster credentials "$dir/tls"
chemscale cluster scheduler --tls "$dir/tls" --scheduler-file "$dir/scheduler.json" --interface "$interface" &
scheduler=$!
srun --overlap --mem=0 chemscale cluster worker --tls "$dir/tls" --scheduler-file "$dir/scheduler.json" \\
  --workers {processes} --memory "{worker_memory}" --lifetime {lifetime}minutes --interface "$interface" &
until [ -s "$dir/scheduler.json" ]; do kill -0 $scheduler || exit 6; sleep 1; done
printf '[cluster]\\nkind = "address"\\nscheduler_file = "%s"\\ntls = "%s"\\n' "$dir/scheduler.json" "$dir/tls" > "$dir/cluster.toml"
{command} --cluster "$dir/cluster.toml" &
child=$!
trap 'kill -TERM $child' TERM  # near the walltime: stop in good order; the same job carries on where it was
wait $child; status=$?
[ $status -gt 128 ] && {{ wait $child; status=$?; }}
exit $status
"""  # noqa: E501  a line of shell


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""
    app.command("slurm", context_settings={"ignore_unknown_options": True})(slurm)


def slurm(
    words: Annotated[list[str] | None, typer.Argument(metavar="VERB...", help="The command, after `--`.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes of the job.")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Cores of each node: a worker process each.")] = 4,
    memory: Annotated[str, typer.Option("--memory", help="Memory of each node.")] = "16 GiB",
    time: Annotated[str, typer.Option("--time", metavar="HH:MM:SS", help="Walltime.")] = "02:00:00",
    partition: Annotated[str | None, typer.Option("--partition", help="Partition (queue).")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Account.")] = None,
    interface: Annotated[str, typer.Option("--interface", help="Network between the nodes.")] = "ib0",
    activate: Annotated[
        str | None, typer.Option("--activate", metavar="SHELL", help="Line that makes chemscale available there.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="FILE", help="Instead: the script of each worker job of this [cluster]."),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the script; submit nothing.")] = False,
    json: AsJson = False,
) -> None:
    """One chemscale command on several nodes: make the job script, and submit it (or --print it).

    The job holds a scheduler, worker processes on every node and the command itself. Jobs that the command submits for
    its workers are the other way: `--cluster slurm.toml` of every verb; `chemscale slurm --cluster slurm.toml --print`
    shows their script.

    Example: chemscale slurm --nodes 4 --print -- rsca fit survey.zarr --run run
    """
    import sys

    from chemscale.cli import echo_json

    if cluster is not None:
        script = _worker_job(cluster)
    else:
        script = job(
            words or [],
            nodes=nodes,
            cpus=cpus,
            memory=memory,
            time=time,
            partition=partition,
            account=account,
            interface=interface,
            activate=activate,
        )
    if json:
        echo_json({"script": script, "submitted": False})
    elif show:
        sys.stdout.write(script)
    else:
        _submit(script, cluster)


def job(
    words: list[str],
    *,
    nodes: int,
    cpus: int,
    memory: str,
    time: str,
    partition: str | None,
    account: str | None,
    interface: str,
    activate: str | None,
) -> str:
    """The script of one job, as text."""
    import shlex

    from chemscale.errors import InputError

    if not words:
        raise InputError("no command was given", "chemscale slurm --nodes 4 --print -- rsca fit survey.zarr --run run")
    words = words[1:] if words[0] == "chemscale" else words
    _check_verb(words)
    total = _mebibytes(memory)
    given = [f"#SBATCH --{k}={v}\n" for k, v in (("partition", partition), ("account", account)) if v]
    return SCRIPT.format(
        command=shlex.join(["chemscale", *words]),
        nodes=nodes,
        processes=cpus,
        memory=f"{total}M",
        time=time,
        directives="".join(given),
        prologue=activate
        or "# EDIT: make `chemscale` available here, for example: source ~/envs/chemscale/bin/activate",
        interface=shlex.quote(interface),
        worker_memory=f"{max(total * 9 // 10 // cpus, 1)} MiB",
        lifetime=max(_minutes(time) - 5, 1),
    )


def _check_verb(words: list[str]) -> None:
    """Refuse a command that is none, or that works in one process only."""
    from chemscale.cli import command
    from chemscale.errors import InputError
    from chemscale.suggest import hint

    node = command()
    path = []
    for word in words:
        if not hasattr(node, "commands"):
            break
        if word not in node.commands:
            raise InputError(f"chemscale has no verb {word!r}", hint(word, list(node.commands), "verbs"))
        node = node.commands[word]
        path.append(word)
    if not any("--cluster" in p.opts for p in node.params):
        raise InputError(
            f"chemscale {' '.join(path)} takes no --cluster: it works in one process", "run it as an ordinary job"
        )


def _mebibytes(memory: str) -> int:
    from dask.utils import parse_bytes

    from chemscale.errors import InputError

    try:
        return int(parse_bytes(memory)) // 2**20
    except ValueError:
        raise InputError(f"--memory {memory!r} is not a size", 'for example "16 GiB"') from None


def _minutes(time: str) -> int:
    from chemscale.errors import InputError

    days, _, clock = time.rpartition("-")
    parts = clock.split(":")
    if len(parts) != 3 or not all(p.isdigit() for p in parts) or (days and not days.isdigit()):
        raise InputError(f"--time {time!r} is not a walltime", "HH:MM:SS, or D-HH:MM:SS")
    return int(days or 0) * 1440 + int(parts[0]) * 60 + int(parts[1])


def _worker_job(cluster: str) -> str:
    from chemscale.errors import InputError
    from chemscale.runtime.backends.batch import job_script
    from chemscale.runtime.settings import BatchSettings, settings_for

    settings = settings_for(cluster)
    if not isinstance(settings, BatchSettings):
        raise InputError(f"{cluster} is not of a batch system", 'kind = "slurm" in its [cluster] table')
    return job_script(settings)


def _submit(script: str, cluster: str | None) -> None:
    import shutil
    import subprocess

    from rich.markup import escape

    from chemscale.cli import console
    from chemscale.errors import ClusterError, InputError

    if cluster is not None:
        raise InputError(
            "jobs of workers are submitted by the command they work for", "add --print to see their script"
        )
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch is not on the PATH: this machine cannot submit jobs",
            "run this on a login node, or --print the script and take it there",
        )
    try:
        done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True, timeout=9)
    except subprocess.TimeoutExpired as err:
        raise ClusterError("sbatch did not answer within 9 s", "is Slurm's controller up? `scontrol ping`") from err
    if done.returncode:
        raise ClusterError(f"sbatch refused the job: {done.stderr.strip()}", "--print shows the script")
    console.print(escape(done.stdout.strip()), highlight=False)
