"""tools/check_dataset.py: what it prints and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

from small_coco import small_coco, write_small_coco

ROOT = Path(__file__).parent.parent


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools/check_dataset.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )


def test_sound_data_exits_0_and_says_what_it_saw(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    result = run(annotations, "--images", images)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == (
        "4 images, 5 annotations, 2 categories: 0 errors, 1 warning"
    )


def test_every_problem_is_printed_and_the_exit_code_is_1(tmp_path):
    tree = small_coco()
    tree["annotations"][0]["bbox"] = [70, 0, 40, 10]
    tree["annotations"][1]["category_id"] = 4
    annotations, images = write_small_coco(tmp_path, tree)
    (images / "20.png").unlink()
    result = run(annotations, "--images", images)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["error"] * 3
    assert "annotation 5 (image 3): bbox [70, 0, 40, 10] reaches outside" in lines[0]
    assert lines[-1].endswith(": 3 errors, 2 warnings")
    assert result.stderr == ""


def test_json_output_and_images_shared_with_another_set(tmp_path):
    first = write_small_coco(tmp_path / "a")
    second = write_small_coco(tmp_path / "b")
    result = run(
        *(first[0], "--images", first[1], "--against", second[0]),
        *("--against-images", second[1], "--json"),
    )
    assert result.returncode == 1
    problems = json.loads(result.stdout)
    shared = [problem for problem in problems if "has the bytes of" in problem["message"]]
    assert sorted(Path(problem["file"]).name for problem in shared) == [
        *("12.png", "20.png", "3.png", "7.png")
    ]
    assert set(shared[0]) == {"severity", "file", "places", "message", "remedy"}


def test_a_file_that_is_not_there_is_one_message_without_a_traceback(tmp_path):
    result = run(tmp_path / "no.json", "--images", tmp_path)
    assert result.returncode == 1
    assert "no.json: cannot be read" in result.stdout
    assert "Traceback" not in result.stderr + result.stdout


def test_wrong_usage_exits_2_and_help_has_examples():
    assert run().returncode == 2
    result = run("--help")
    assert result.returncode == 0
    assert "python tools/check_dataset.py train.json --images images" in result.stdout
