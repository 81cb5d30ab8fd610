"""The last lines of a run: reasons of failures, results, and a warning if results are of another study."""

import json

from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT
from nadpipe.outcome import changed_study, describe_failures, describe_results, is_unrecorded, record_study

SNAKEMAKE_LOG = """[Wed Nov 25 02:49:22 2026]
Error in rule select_pairs:
    message: None
    jobid: 7
    input: results/a.zarr
    output: results/b.zarr
    log: logs/select_pairs/a.log (check log file(s) for error details)
    shell:
        nadpipe select-pairs 2>logs/select_pairs/a.log
Error in rule embed_texts:
    jobid: 8
    output: results/c.zarr
    log: logs/embed_texts/c.log (check log file(s) for error details)
Error in rule select_pairs:
    jobid: 7
    log: logs/select_pairs/a.log (check log file(s) for error details)
"""


def test_the_last_line_of_each_failed_log_is_shown_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs/select_pairs").mkdir(parents=True)
    (tmp_path / "logs/select_pairs/a.log").write_text("1/2\r2/2\nnadpipe select-pairs: k: too large; lower it\n\n")
    assert describe_failures(SNAKEMAKE_LOG).split("\n") == [
        "select_pairs: nadpipe select-pairs: k: too large; lower it",
        f"  log: {tmp_path}/logs/select_pairs/a.log",
        "embed_texts: no log (No such file or directory)",
        f"  log: {tmp_path}/logs/embed_texts/c.log",
    ]
    (tmp_path / "logs/embed_texts").mkdir()
    (tmp_path / "logs/embed_texts/c.log").touch()
    assert "embed_texts: the log is empty; " in describe_failures(SNAKEMAKE_LOG)


def test_one_table_is_shown_and_several_results_are_listed(tmp_path):
    table, page = tmp_path / "t.csv", tmp_path / "p.html"
    table.write_text("method,k,miou\n" + 'nad,10,0.123456789\n"a, b",,1e-07\n' * 10)
    page.touch()
    lines = describe_results([str(table)]).split("\n")
    assert lines[:4] == [f"{table}:", "method  k   miou", "nad     10  0.1235", "a, b        1e-07"]
    assert lines[-1] == "… 8 more rows"
    assert describe_results([str(table), str(page), "missing"]).split("\n") == [f"made: {table}", f"made: {page}"]


def test_another_model_or_path_under_the_same_name_is_another_study(tmp_path):
    record = tmp_path / "study.json"
    config = {"model": {"architecture": "RN50"}, "datasets": {"discovery": {"path": "a", "shards": 1}}, "seed": 0}
    assert changed_study(config, record) == []
    record_study(config, record)
    assert changed_study({**config, "seed": 1}, record) == []
    batch = {**config, "datasets": {**config["datasets"], "april": {"path": "b", "shards": 1}}}
    assert changed_study(batch, record) == []
    other = json.loads(json.dumps(config).replace("RN50", "RN101").replace('"a"', '"b"'))
    assert changed_study(other, record) == ["model.architecture", "datasets.discovery.path"]


def test_results_without_the_records_of_their_run_are_noticed(tmp_path):
    results, record = tmp_path / "results", tmp_path / ".snakemake" / "study.json"
    assert not is_unrecorded(results, record)
    (results / "artifacts").mkdir(parents=True)
    assert is_unrecorded(results, record)
    record_study({"model": {}, "datasets": {}}, record)
    assert not is_unrecorded(results, record)


def test_a_command_that_was_refused_in_a_run_is_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NADPIPE_RUN", str(tmp_path))
    command = ["export-readout", "--architecture", "no.json", "--output", str(tmp_path / "r.zarr")]
    assert main(command) == BAD_INPUT
    message = capsys.readouterr().err
    monkeypatch.setattr("importlib.import_module", None)  # what runs a command
    assert main(command) == BAD_INPUT
    assert capsys.readouterr().err == message
    monkeypatch.undo()
    monkeypatch.setenv("NADPIPE_RUN", str(tmp_path / "next run"))
    assert main(command) == BAD_INPUT
