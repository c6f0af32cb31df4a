"""Settings: every verb's options are keys, unknown ones are refused with the nearest."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
import typer
from typer.main import get_command

from chemscale import config
from chemscale.errors import InputError


@pytest.fixture
def command():
    app = typer.Typer()
    sub = typer.Typer()
    app.add_typer(sub, name="rsca")

    @sub.command("fit")
    def fit(store: str, components: int = typer.Option(30, help="Dimensions."), cluster: str = "local") -> None:
        print(store, components, cluster)

    @app.command("report")
    def report(run: str = typer.Option(..., "--run")) -> None:
        print(run)

    return get_command(app)


def invoke(command, args, **kwargs):
    return command.main(args, standalone_mode=False, **kwargs)


def test_file_then_set_then_command_line(command, tmp_path, capsys):
    file = tmp_path / "c.toml"
    file.write_text("[rsca.fit]\ncomponents = 12\n")
    defaults, _ = config.resolve(command, file)
    invoke(command, ["rsca", "fit", "S"], default_map=defaults)
    defaults, _ = config.resolve(command, file, ["rsca.fit.components=13"])
    invoke(command, ["rsca", "fit", "S"], default_map=defaults)
    invoke(command, ["rsca", "fit", "S", "--components", "14"], default_map=defaults)
    assert capsys.readouterr().out.split("\n")[:3] == ["S 12 local", "S 13 local", "S 14 local"]


def test_a_cluster_table_makes_the_file_the_default_cluster(command, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[cluster]\nkind = "slurm"\n')
    defaults, _ = config.resolve(command, file)
    assert defaults == {"rsca": {"fit": {"cluster": str(file)}}}


@pytest.mark.parametrize("text", ["rsca.fit.componets=3", "rsca.fti.components=3"])
def test_unknown_keys_name_the_nearest(command, text):
    with pytest.raises(InputError) as err:
        config.resolve(command, assignments=[text])
    assert "unknown key" in err.value.message
    assert "rsca.fit.components" in err.value.remedy


def test_unknown_key_in_a_file_names_the_file(command, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[report]\nrnu = 'x'\n")
    with pytest.raises(InputError, match=r"mine\.toml: unknown key 'report\.rnu'"):
        config.resolve(command, file)


def test_broken_and_missing_files(command, tmp_path):
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="not valid TOML"):
        config.resolve(command, tmp_path / "bad.toml")
    with pytest.raises(InputError, match="no settings file"):
        config.resolve(command, tmp_path / "absent.toml")
    with pytest.raises(InputError, match="key=value"):
        config.resolve(command, assignments=["components"])


def test_renamed_keys_still_work_and_say_so(command, monkeypatch):
    monkeypatch.setitem(config.RENAMED, "rsca.fit.k", "rsca.fit.components")
    defaults, notes = config.resolve(command, assignments=["rsca.fit.k=4"])
    assert defaults["rsca"]["fit"] == {"components": 4}
    assert any("now called rsca.fit.components" in n for n in notes)


def test_default_toml_is_valid_and_complete(command):
    text = config.default_toml(command)
    tomllib.loads(text)
    assert "# components = 30  # Dimensions." in text
    uncommented = "\n".join(line[2:] if line.startswith("# components") else line for line in text.splitlines())
    assert tomllib.loads(uncommented)["rsca"]["fit"]["components"] == 30


def test_the_real_command_line_prints_its_settings_and_refuses_typos():
    exe = [sys.executable, "-m", "chemscale"]
    done = subprocess.run([*exe, "config"], capture_output=True, text=True, check=True)
    tomllib.loads(done.stdout)
    bad = subprocess.run([*exe, "--set", "rsca.fit.componnents=3", "config"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "unknown key" in bad.stderr
    assert "remedy" in bad.stderr


def test_keys_are_named_after_options_and_old_names_still_work():
    from chemscale.cli import PANELS
    from chemscale.cli import command as whole

    root = whole()
    assert sorted(root.commands) == sorted(n for names in PANELS.values() for n in names)  # every verb has a panel
    known = config.known_keys(root)
    for key, param in known.items():
        assert f"--{key.rpartition('.')[2].replace('_', '-')}" in param.opts, key
        assert param.envvar == "CHEMSCALE_" + key.upper().replace(".", "_"), key
    for old in ("doctor.as_json", "run.first", "cluster.worker.stagger"):
        nested, notes = config.default_map({old: True}, known)
        assert "is now called" in notes[0] and nested
    assert all(config.renamed(old.replace("*", "doctor")) in known for old in config.RENAMED)


def test_every_reporting_verb_has_json_and_an_example():
    from chemscale.cli import command as whole

    silent = {"cluster.scheduler", "cluster.worker"}  # they stay until they are stopped
    pending = [("", whole())]
    while pending:
        path, node = pending.pop()
        subs = getattr(node, "commands", None)
        if subs:
            pending += [(f"{path}.{name}".strip("."), sub) for name, sub in subs.items()]
            continue
        assert "Example" in node.help and f"chemscale {path.replace('.', ' ')}".strip() in node.help, path
        assert path in silent or any("--json" in p.opts for p in node.params), path


def test_environment_reaches_an_option_by_its_name(tmp_path, monkeypatch):
    import json
    import os

    env = {**os.environ, "CHEMSCALE_CONFIG_JSON": "1"}
    exe = [sys.executable, "-m", "chemscale"]
    done = subprocess.run([*exe, "config"], capture_output=True, text=True, check=True, env=env)
    keys = json.loads(done.stdout)
    assert keys["rsca.fit.components"]["default"] == 30 and keys["run.from"]["help"]
    assert keys["rsca.fit.components"]["environment"] == "CHEMSCALE_RSCA_FIT_COMPONENTS"


def test_settings_in_force_are_recorded_with_their_source(tmp_path, monkeypatch):
    import json

    from helpers import make_survey

    from chemscale.cli import command as whole
    from chemscale.survey.ingest.datasets import write_survey

    write_survey(make_survey(n_field=60, n_clusters=3, n_pixels=40), tmp_path / "s.zarr")
    (tmp_path / "c.toml").write_text("[rsca.fit]\ncomponents = 3\n")
    monkeypatch.setenv("CHEMSCALE_RSCA_FIT_MIN_MEMBERS", "3")
    words = ["--config", tmp_path / "c.toml", "rsca", "fit", tmp_path / "s.zarr", "--run", tmp_path / "run"]
    whole().main([str(w) for w in words], prog_name="chemscale", standalone_mode=False)
    stage = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]["ppca"]
    settings = stage["invocation"]["settings"]
    assert settings["components"] == {"value": 3, "from": "file or --set"}
    assert settings["min_members"] == {"value": 3, "from": "environment"}
    assert settings["run"] == {"value": str(tmp_path / "run"), "from": "command line"}
    assert "metric" not in settings  # has its default
