"""Settings as SLURM array jobs."""

from datamodels.launch.slurm.cancel import cancel
from datamodels.launch.slurm.config import Slurm, slurm_from
from datamodels.launch.slurm.dry_run import dry_run
from datamodels.launch.slurm.queue import require_sbatch
from datamodels.launch.slurm.script import require_path

__all__ = ["Slurm", "cancel", "dry_run", "require_path", "require_sbatch", "slurm_from"]
