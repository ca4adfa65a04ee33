"""As much of Slurm's sbatch as a job array needs, on this machine.

python fake_slurm.py --export=ALL,RUN_OFFSET=0 SCRIPT
"""

import os
import re
import subprocess
import sys
from pathlib import Path


def sbatch(*arguments: str) -> None:
    """Run the tasks of a job script's array, all at once; a copy of the script stays in the working directory."""
    script = Path(arguments[-1]).read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    Path("sbatch.sh").write_text(script)
    exported = dict(pair.split("=") for pair in arguments[0].removeprefix("--export=ALL,").split(","))
    last, _, _ = given["array"].removeprefix("0-").partition("%")
    log = given["output"].replace("%A", "4242")
    tasks = []
    for task in range(int(last) + 1):
        environment = {**os.environ, **exported, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here"}
        with open(log.replace("%a", str(task)), "w") as output:
            tasks.append(subprocess.Popen(["bash", "sbatch.sh"], env=environment, stdout=output, stderr=output))
    code = max(task.wait() for task in tasks)
    print("Submitted batch job 4242")
    sys.exit(code if "wait" in given else 0)


if __name__ == "__main__":
    sbatch(*sys.argv[1:])
