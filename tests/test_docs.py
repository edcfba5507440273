"""The documentation: it builds without a warning, its reference is current, its tutorials run."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        members = entry.values() if isinstance(entry, dict) else entry
        return [page for member in members for page in pages(member)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    found = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert sorted(listed) == sorted(found)
    linked = re.findall(r"\]\(([^)#:]+\.md)\)", (ROOT / "docs/index.md").read_text())
    assert sorted(["index.md", *linked]) == sorted(found)


def test_the_configuration_reference_is_what_the_schema_says(run_tool):
    result = run_tool(
        "write_config_reference", "--check", "--output", ROOT / "docs/configuration.md"
    )
    assert result.code == 0, result.err


def test_the_messages_of_the_troubleshooting_page_are_the_codes():
    """The longest part of each that holds no value: numbers and file names are filled in."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    folders = ("backbones", "fcmae", "detection", "training")
    code = "\n".join(f.read_text() for folder in folders for f in (ROOT / folder).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings over several lines
    messages = [
        m
        for title in re.findall(r"^\*\*(.+?)\*\*", page, re.MULTILINE)
        for m in re.findall("`(.+?)`", title)
    ]
    assert len(messages) > 8
    for message in messages:
        fixed = max(re.split(r"\.\.\.|\d+|\w+\.json", message), key=len).strip()
        assert fixed in code, message


def test_the_citation_file_has_what_its_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # schema 1.2.0, "required"
    assert {"type", "title", "authors"} <= set(cited["preferred-citation"])
    assert f"\nversion = {cited['version']}\n" in (ROOT / "setup.cfg").read_text()


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "det_configs/README.md"])
def test_links_to_files_of_the_repository_lead_somewhere(file):
    path = ROOT / file
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


def test_the_tutorials_commands_run(tmp_path, monkeypatch, fcmae):
    """In a folder of its own, with 2 steps where the page says 300."""
    monkeypatch.chdir(tmp_path)
    for page in ("encoder", "detector"):
        text = (ROOT / f"docs/tutorials/{page}.md").read_text()
        for script in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            script = re.sub(r"(--max-steps|SOLVER.MAX_ITER) 300", r"\1 2", script)
            script = script.replace("SOLVER.MAX_ITER 2", "SOLVER.MAX_ITER 2 SOLVER.STEPS '()'")
            program, *arguments = shlex.split(
                script.replace(", 20, 10, 60)", ", 4, 2, 16)").replace("\\\n", " ")
            )
            if program == "python":
                flag, code = arguments
                assert flag == "-c"
                exec(code, {})
                continue
            device = ("--device", "cpu") if arguments[0] in ("pretrain", "train", "predict") else ()
            done = fcmae(*arguments, *device)
            assert done.code == 0, f"{script}\n{done.err}"
    assert (tmp_path / "runs/compare.html").is_file()
    assert (tmp_path / "runs/predictions/predictions.json").is_file()


SRUN = """#!/bin/bash
trap 'sleep 0.3; echo checkpoint >> log; exit 1' TERM  # as torchrun ends
echo "$*" >> log
[ -e fail ] && exit 3
for _ in {1..600}; do sleep 0.1; done
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) printf 'first\nsecond\n' ;;
    *) echo "$*" >> log ;;
esac
"""


@pytest.mark.parametrize("fails", [False, True])
def test_the_slurm_job_waits_for_the_checkpoint_and_queues_again(tmp_path, fails):
    """With stand-ins for ``srun`` and ``scontrol``; one that fails by itself does not queue."""
    page = (ROOT / "docs/scaling.md").read_text()
    script, _ = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("job.sh", script)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    if fails:
        (tmp_path / "fail").touch()
    facts = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x"}
    environment = os.environ | facts | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    log = tmp_path / "log"
    while job.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.02)
    if not fails:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == (3 if fails else 0)
    started, *later = log.read_text().splitlines()
    assert started.startswith("torchrun --nnodes 2 ")
    assert " --rdzv-id 17 --rdzv-endpoint first:29500 " in started
    assert later == ([] if fails else ["checkpoint", "requeue 17"])


SMALL = """#!/bin/bash
echo $$ > pid
exec {python} -m fcmae "$@" --model convnextv2_atto --data {images} --image-size 64 --batch-size 4 \
    --decoder-dim 16 --workers 0 --log-every 1 --checkpoint-every 4000 --device cpu $STEPS
"""
DOCKER = """#!/bin/bash
echo "$*" > started
while [ "$1" != IMAGE ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def job(tmp_path, image_folder):
    """Start a script with stand-ins for srun, scontrol, docker; the pretraining is a small one."""
    small = SMALL.format(python=sys.executable, images=image_folder)
    programs = {"srun": '#!/bin/bash\nexec "$@"\n', "scontrol": SCONTROL, "docker": DOCKER}
    for name, text in {**programs, "fcmae": small}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(script: str, steps: int) -> subprocess.Popen:
        facts = {"SLURM_JOB_ID": "17", "STEPS": f"--max-steps {steps}", "PYTHONPATH": str(ROOT)}
        environment = os.environ | facts | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment)

    return start


def test_the_slurm_job_of_one_process_writes_a_checkpoint_and_queues_again(tmp_path, job):
    page = (ROOT / "docs/scaling.md").read_text()
    _, script = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    run = job(script, 4000)
    metrics = tmp_path / "runs/tiny/metrics.json"
    while run.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    assert run.wait(60) == 128 + signal.SIGUSR1
    assert (tmp_path / "log").read_text() == "requeue 17\n"
    assert list((tmp_path / "runs/tiny/checkpoints").glob("step_*"))


def test_the_command_of_the_container_runs(tmp_path, job):
    page = (ROOT / "docs/scaling.md").read_text()
    (script,) = re.findall(r"```bash\n(docker run.*?)```", page, re.DOTALL)
    assert job(script, 1).wait(120) == 0
    assert "--shm-size 8g" in (tmp_path / "started").read_text()
    assert (tmp_path / "runs/tiny/encoder.safetensors").is_file()


def test_every_script_of_the_pages_is_bash():
    for page in ROOT.glob("docs/**/*.md"):
        for script in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
            assert checked.returncode == 0, f"{page}: {checked.stderr}"
