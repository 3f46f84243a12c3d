"""NASRec end to end by the command line, on planted clicks."""

from pathlib import Path

import pytest

from tests.commands import SMALL, finish, read, report


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_tests_what_it_found_and_does_nothing_when_done(tmp_path: Path) -> None:
    output = finish("nasrec", tmp_path, *SMALL["nasrec"])
    assert output.strip().endswith(f"Report: {tmp_path}/report/index.html")
    told = report(tmp_path)
    assert (told["headline"], told["protocol"]) == ("log_loss", "stratified/all-rows")
    assert {row["metric"] for row in told["rows"]} == {"log_loss", "auc", "calibration"}
    labels = [row["model"] for row in told["rows"] if row["metric"] == "log_loss"]
    assert labels == ["NASRec whole, regularized:population=8,sample=4,children=6", *labels[1:]] and len(labels) == 3
    rows = {row["model"]: row for row in told["rows"] if row["metric"] == "log_loss"}
    assert all(0.3 < row["low"] <= row["value"] <= row["high"] < 1.0 for row in rows.values())
    trained = read(tmp_path, "retrain/models.json")
    kept = {one["model_id"] for one in read(tmp_path, "search/candidates.json")}
    tested = set(told["models"])
    assert len(kept) == 2 and len(trained) == 2 + 2 + 1
    for model_id in tested:
        for seed in (0, 1):
            assert (tmp_path / f"retrain/{model_id}/part=0/seed={seed}/result.json").exists()
    assert tested < set(trained) and not tested & kept and len(tested) == 3, "what is tested has tables without a cap"
    assert finish("nasrec", tmp_path, *SMALL["nasrec"]).count("done before") == 8
