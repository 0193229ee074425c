"""Settings as SLURM array jobs. `script` has the sbatch scripts, `submission` what is submitted when."""

from datamodels.launch.slurm.cancel import cancel
from datamodels.launch.slurm.client import version
from datamodels.launch.slurm.config import TEXT_KEYS, Slurm, slurm_from
from datamodels.launch.slurm.dry_run import dry_run
from datamodels.launch.slurm.status import describe_jobs, job_summary
from datamodels.launch.slurm.submission import check_submittable, run_gate, submit

__all__ = [
    "TEXT_KEYS",
    "Slurm",
    "cancel",
    "check_submittable",
    "describe_jobs",
    "dry_run",
    "job_summary",
    "run_gate",
    "slurm_from",
    "submit",
    "version",
]
