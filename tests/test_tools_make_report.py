"""tools/make_report.py: exit codes, messages and what is written."""

import json

from small_coco import small_coco, write_small_coco


def make_run(folder, ap):
    (folder / "inference").mkdir(parents=True)
    metrics = {"bbox": {"AP": ap}, "segm": {"AP": ap / 2}}
    (folder / "inference" / "metrics_summary.json").write_text(json.dumps(metrics))
    return folder


def test_one_run_and_several_give_a_page_and_its_markdown(tmp_path, run_tool):
    first, second = make_run(tmp_path / "a", 40.0), make_run(tmp_path / "b", 42.5)
    output = tmp_path / "new" / "report.html"
    result = run_tool("make_report", first, "--output", output)
    assert result.code == 0
    assert result.out.strip() == str(output)
    assert '<data value="40.0">40.0</data>' in output.read_text()
    names = ("--names", "from scratch", "FCMAE", "--note", "One seed.", "--note", "Again.")
    result = run_tool("make_report", first, second, "--output", output, *names)
    assert result.code == 0
    text = output.with_suffix(".md").read_text()
    assert "| FCMAE | 42.5 | +2.5 | 21.2 | +1.2 |" in text
    assert "> One seed." in text
    assert "> Again." in text


def test_a_folder_without_a_run_gives_one_message_and_exit_code_1(tmp_path, run_tool):
    result = run_tool("make_report", tmp_path, "--output", tmp_path / "report.html")
    assert result.code == 1
    assert result.err.startswith(f"error: {tmp_path} holds no run")
    assert "Traceback" not in result.err
    result = run_tool(
        "make_report", make_run(tmp_path / "a", 1.0), "--output", tmp_path / "report.pdf"
    )
    assert (result.code, "must end in .html" in result.err) == (1, True)


def test_a_folder_of_detectron2s_own_trainer_is_evaluated_on_the_given_test_set(tmp_path, run_tool):
    annotations, images = write_small_coco(tmp_path / "data")
    results = tmp_path / "output" / "inference" / "coco_instances_results.json"
    results.parent.mkdir(parents=True)
    keys = ("image_id", "category_id", "bbox", "segmentation")
    objects = [item for item in small_coco()["annotations"] if not item["iscrowd"]]
    entries = [{key: item[key] for key in keys} | {"score": 0.9} for item in objects]
    results.write_text(json.dumps([entry for entry in entries if entry["category_id"] == 2]))
    output = tmp_path / "report.html"
    arguments = ("make_report", tmp_path / "output", "--output", output)
    assert run_tool(*arguments).code == 0
    assert "| Box AP | not recorded |" in output.with_suffix(".md").read_text()
    done = run_tool(*arguments, "--annotations", annotations, "--images", images)
    assert done.code == 0, done.err
    text = output.with_suffix(".md").read_text()
    assert "| Box AP | 50.0 |" in text  # all of one class, none of the other
    assert "| Mask AP | 50.0 |" in text
    assert "image 12" in text or "12.png" in text
    assert run_tool(*arguments, "--annotations", annotations).code == 2


def test_wrong_usage_gives_exit_code_2_and_help_shows_commands(run_tool):
    assert run_tool("make_report", "run").code == 2
    result = run_tool("make_report", "--help")
    assert result.code == 0
    assert "python tools/make_report.py runs/scratch" in result.out
