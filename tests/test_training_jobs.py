from __future__ import annotations

import json
import sys

import pytest

from training.command_line.commands import child_command
from training.command_line.jobs import Job, finished_steps, run_jobs, start_process


def test_jobs_run_side_by_side_with_their_logs(tmp_path):
    script = "import os; print(os.environ['OMP_NUM_THREADS'], 'threads')"
    jobs = [Job(name, [sys.executable, "-c", script], tmp_path / name, 1) for name in ("a", "b")]
    run_jobs(jobs, tmp_path)
    assert all(job.log.read_text().endswith("threads\n") for job in jobs)


def test_a_failing_job_is_an_error_with_the_end_of_its_log(tmp_path):
    failing = Job(
        "The job", [sys.executable, "-c", "raise SystemExit('no data')"], tmp_path / "a", 1
    )
    with pytest.raises(ValueError, match=r"The job failed with exit code 1:\nno data"):
        run_jobs([failing], tmp_path)


def test_progress_is_the_last_line_of_the_metrics(tmp_path):
    assert finished_steps(tmp_path) == 0
    lines = [json.dumps({"iteration": i}) + "\n" for i in (20, 40)]
    (tmp_path / "metrics.json").write_text("".join(lines))
    assert finished_steps(tmp_path) == 40


def test_the_log_of_a_command_begins_with_what_a_user_would_type(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fcmae study"])
    command = [*child_command("check"), "--help"]
    assert start_process(command, tmp_path / "check.log", {}).wait() == 0
    assert (tmp_path / "check.log").read_text().startswith("$ fcmae check --help\n")
