"""The scripts that are handed to sbatch. Whatever comes from a user is quoted, for bash and for sbatch's own reader."""

import os
import re
import shlex
import sys
from pathlib import Path

import yaml

import datamodels
from datamodels.launch.slurm.config import After, Slurm, slurm_from
from datamodels.launch.slurm.plan import Plan
from datamodels.train import Setting, UserError, from_dict
from datamodels.train.store import Layout

GATE = "gate.sh"
SETTING = "setting.yaml"
CLUSTER = "slurm.yaml"


def files(plan: Plan, path: Path, layout: Layout) -> dict[str, str]:
    """All files of a plan besides plan.json, by name. Raises UserError for a root that cannot be written in a script.

    path: the folder that they will lie in; layout: with an absolute root.
    """
    script = _Script(plan, path, layout)
    named = {SETTING: _yaml(plan.setting), CLUSTER: _yaml(plan.cluster), GATE: script.gate()}
    for chunk, tasks in enumerate(plan.chunks):
        named[plan.script(chunk)] = getattr(script, plan.stage)(chunk)
        named[_list(plan, chunk)] = "".join(f"{start}:{stop}\n" for start, stop in tasks)
    return named


def portable(setting: Setting) -> dict[str, object]:
    """The resolved setting with absolute paths, so that it means the same in any folder."""
    content = setting.to_dict()
    for key in ("root", "packed"):
        content["data"][key] = _absolute(content["data"][key])
    if setting.data.python:
        content["data"]["python"] = _absolute(setting.data.python)
    if setting.recipe.own_network:
        content["recipe"]["network"] = _absolute(setting.recipe.network)
    return content


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def sbatch_quoted(text: str) -> str:
    """A value as sbatch reads it from an #SBATCH line."""
    if re.fullmatch(r"[\w./:=@%+,-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def lanes(arrays: int, at_once: int | None) -> tuple[int, int | None]:
    """How many of a plan's arrays may run side by side, and the throttle of each, to run `at_once` tasks in all."""
    width = min(arrays, at_once or arrays)
    return width, at_once // width if at_once else None


def _yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def _list(plan: Plan, chunk: int) -> str:
    return f"{plan.stage}_{chunk}.{'rows' if plan.stage == 'train' else 'targets'}"


def require_path(layout: Layout) -> None:
    """Raises UserError for a root that cannot be written in a script."""
    if not str(layout.folder).isprintable() or "\\" in str(layout.folder):
        raise UserError(f"--root is {str(layout.root)!r}: SLURM takes no path with a backslash or a line break")


class _Script:
    def __init__(self, plan: Plan, path: Path, layout: Layout) -> None:
        require_path(layout)
        self.plan, self.path, self.layout = plan, path, layout
        self.setting = from_dict(plan.setting)
        self.cluster: Slurm = slurm_from(plan.cluster)

    def train(self, chunk: int) -> str:
        cluster = self.cluster
        gpus = cluster.gpus_for(self.setting)
        options = [*self._common("train", "%A_%a"), *self._resources(cluster, gpus), *self._array(chunk)]
        options.append(f"--signal=B:USR1@{cluster.signal}")
        workers = cluster.workers if gpus else cluster.workers_for(self.setting)
        train = self._command("train", '--rows "$task"', f"--workers {workers}" if workers else "")
        return self._text(
            options,
            f"Trains the rows that are missing in one line of {_list(self.plan, chunk)}. Done rows stay done,\n"
            "# whatever happens to this job and however often it runs.",
            [self._pick(chunk), _FORWARD.format(command=train, requeues=cluster.requeues)],
            cluster,
        )

    def fit(self, chunk: int) -> str:
        after = self.cluster.after
        options = [*self._common("fit", "%A_%a"), *self._resources(after, self.plan.fit_gpus), *self._array(chunk)]
        fit = self._command("fit", f"--split {self.plan.split}", '--targets "$task"')
        what = f"Fits the targets in one line of {_list(self.plan, chunk)}; the last one joins the pieces."
        return self._text(options, what, [self._pick(chunk), _threads(after), f"exec {fit}"], after)

    def eval(self, chunk: int) -> str:
        after = self.cluster.after
        options = [*self._common("eval", "%A_%a"), *self._resources(after, after.gpus or 0), *self._array(chunk)]
        split = f"--split {self.plan.split}"
        steps = [_threads(after)]
        if self.setting.eval_models:
            result = shlex.quote(str(eval_path(self.layout, self.plan.split)))
            steps += [_EVAL.format(result=result, command=self._command("eval", split, "--json"))]
        steps.append(f"exec {self._command('report', split)}")
        return self._text(options, "Judges the datamodels on the evaluation rows, and writes the report.", steps, after)

    def gate(self) -> str:
        options = [*self._common("gate", "%j"), *self._resources(self.cluster.after)]
        gate = self._command("submit", f'--slurm "$plan"/{CLUSTER}', '--gate "$plan"')
        what = "Asks the store what is left to do once the jobs before it have ended, well or not, and submits that."
        steps = [_ASK.format(command=gate, requeues=self.cluster.requeues)]
        return self._text(options, what, steps, self.cluster.after)

    def _common(self, stage: str, job: str) -> list[str]:
        log = str(self.path / "logs").replace("%", "%%") + f"/{stage}_{job}.log"
        name = self.cluster.name or f"datamodels-{self.layout.dataset}-{self.layout.pct}pct"
        return [
            f"--job-name={name}-{stage}",
            f"--output={log}",
            "--open-mode=append",
            "--requeue",
            "--nodes=1",
            "--ntasks=1",
        ]

    def _resources(self, job: Slurm | After, gpus: int = 0) -> list[str]:
        partition = job.partition or self.cluster.partition
        asked = {"time": job.time, "mem": job.memory, "partition": partition, "account": self.cluster.account}
        options = [f"--cpus-per-task={job.cpus}", *(f"--{key}={value}" for key, value in asked.items() if value)]
        return [*options, f"--gres=gpu:{gpus}"] if gpus else options

    def _array(self, chunk: int) -> list[str]:
        _, throttle = lanes(len(self.plan.chunks), self.cluster.at_once)
        limit = f"%{throttle}" if throttle else ""
        return [f"--array=0-{len(self.plan.chunks[chunk]) - 1}{limit}"]

    def _command(self, command: str, *options: str) -> str:
        # -P: no module of the folder that `submit` was called in takes the place of one of ours.
        call = f"{shlex.quote(sys.executable)} -P -m datamodels.launch.cli {command}"
        place = f'"$plan"/{SETTING} --root {shlex.quote(str(self.layout.root))}'
        return " ".join(filter(None, (call, place, *options)))

    def _pick(self, chunk: int) -> str:
        return f'task=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$plan"/{_list(self.plan, chunk)})'

    def _text(self, options: list[str], what: str, steps: list[str], job: Slurm | After) -> str:
        written = [f"#SBATCH {_option(option)}" for option in options]
        written += [f"#SBATCH {line}" for line in job.extra]
        manifest = shlex.quote(str(self.layout.manifest))
        head = _HEAD.format(
            plan=shlex.quote(str(self.path)),
            packages=shlex.quote(str(Path(datamodels.__path__[0]).parent)),
            store=self.plan.store,
            manifest=manifest,
        )
        return "\n".join(["#!/bin/bash", *written, f"\n# {what}", head, *self.cluster.setup, *steps]) + "\n"


def _option(option: str) -> str:
    name, _, value = option.partition("=")
    return f"{name}={sbatch_quoted(value)}" if value else name


def _threads(job: After) -> str:
    return f"export OMP_NUM_THREADS={job.cpus} NUMBA_NUM_THREADS={job.cpus}"


def eval_path(layout: Layout, split: str) -> Path:
    """Where the result of a submitted `eval` lies."""
    return layout.folder / f"eval_{split}_{layout.pct}pct.json"


_HEAD = """\
plan={plan}
export PYTHONPATH={packages}${{PYTHONPATH:+:$PYTHONPATH}}
if ! grep -qsF '"id": "{store}"' {manifest}; then
  echo "error: $(hostname) does not find the store of $plan, {store}: it is not visible here, or another one now" >&2
  exit 2
fi"""

_EVAL = """\
result={result}
{command} > "$result.$$" || exit
mv "$result.$$" "$result" || exit"""

_ASK = """\
{command}
code=$?
# 75: SLURM did not answer, or someone else submits. The gate comes back then, a bounded number of times.
if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
  for pause in 0 30 120; do sleep "$pause"; scontrol requeue "$SLURM_JOB_ID" && break; done
fi
exit "$code"\
"""

_FORWARD = """\
{command} &
worker=$!
# The time limit (USR1) and preemption (TERM) are told to this shell, which only hears them while it waits.
heard='' ended=''
trap 'heard=yes; kill -TERM "$worker" 2>/dev/null' USR1
trap 'heard=yes ended=yes; kill -TERM "$worker" 2>/dev/null' TERM
wait "$worker"; code=$?
while [ -n "$heard" ]; do heard=''; wait "$worker"; code=$?; done
# 75: rows are left; above 128: the worker was killed. After TERM it is for SLURM to say whether the job comes back.
if [ -z "$ended" ] && {{ [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }}; then
  [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code\""""
