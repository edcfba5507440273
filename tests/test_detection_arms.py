"""detection.reporting.arms: means, intervals, paired differences of runs, what is refused."""

import json


def make_run(folder, seed, box, mask, fingerprint="same", losses=()):
    (folder / "inference").mkdir(parents=True)
    metrics = {"bbox": {"AP": box}, "segm": {"AP": mask}}
    (folder / "inference/metrics_summary.json").write_text(json.dumps(metrics))
    facts = {"seed": seed, "datasets": {"test": {"fingerprint": fingerprint}}}
    (folder / "run.json").write_text(json.dumps(facts))
    lines = [json.dumps({"iteration": i, "total_loss": v}) for i, v in enumerate(losses, 1)]
    (folder / "metrics.json").write_text("\n".join(lines))
    return folder


def test_the_table_holds_means_intervals_and_differences_paired_by_seed(run_tool, tmp_path):
    scratch = [
        make_run(tmp_path / f"s{i}", i, v, 1.0) for i, v in ((1, 10.0), (2, 12.0), (3, 17.0))
    ]
    fcmae = [make_run(tmp_path / f"f{i}", i, v, 2.0) for i, v in ((3, 19.0), (1, 11.0), (2, 15.0))]
    result = run_tool("compare_arms", "--arm", "scratch", *scratch, "--arm", "FCMAE", *fcmae)
    assert result.code == 0, result.err
    # Of scratch: mean 13, standard deviation sqrt((9 + 1 + 16) / 2); t(2) = 4.3027.
    # Differences 1, 3, 2: mean 2, standard deviation 1, half width 4.3027 / sqrt(3) = 2.48.
    assert "| scratch | 1, 2, 3 | 13.00 ± 8.96 | 10.00, 12.00, 17.00 |  |" in result.out
    assert "| FCMAE | 1, 2, 3 | 15.00 ± 9.94 | 11.00, 15.00, 19.00 | +2.00 ± 2.48 |" in result.out


def test_the_curves_are_means_over_seeds(run_tool, tmp_path):
    runs = [
        make_run(tmp_path / f"s{i}", i, 1.0, 1.0, losses=v) for i, v in ((1, [4, 2]), (2, [2, 1]))
    ]
    curves = tmp_path / "losses.svg"
    result = run_tool("compare_arms", "--arm", "scratch", *runs, "--curves", curves)
    assert result.code == 0, result.err
    text = curves.read_text()
    assert "scratch, iteration 1: 3<" in text
    assert "scratch, iteration 2: 1.5<" in text
    other = run_tool("compare_arms", "--arm", "x", *runs, "--curves", curves, "--metric", "bbox/AP")
    assert other.code == 1
    assert "no run has 'bbox/AP' in its metrics.json; recorded: total_loss" in other.err


def test_all_that_cannot_be_compared_is_said_at_once(run_tool, tmp_path):
    first = make_run(tmp_path / "a", 1, 1.0, 1.0)
    same_seed = make_run(tmp_path / "b", 1, 1.0, 1.0)
    other_data = make_run(tmp_path / "c", 2, 1.0, 1.0, fingerprint="other")
    unfinished = make_run(tmp_path / "d", 3, 1.0, 1.0)
    (unfinished / "inference/metrics_summary.json").unlink()
    folders = [first, same_seed, other_data, unfinished, tmp_path / "absent"]
    result = run_tool("compare_arms", "--arm", "x", *folders)
    assert result.code == 1
    assert "seed 1 is no number or twice" in result.err
    assert "not tested on the same data" in result.err
    assert "not finished" in result.err
    assert "absent is not a folder" in result.err
    with_none = run_tool("compare_arms", "--arm", "x")
    assert with_none.code == 2


def test_a_single_seed_has_no_interval(run_tool, tmp_path):
    result = run_tool("compare_arms", "--arm", "one", make_run(tmp_path / "a", 7, 5.25, 4.0))
    assert "| one | 7 | 5.25 | 5.25 |  | 4.00 | 4.00 |  |" in result.out
