"""Starting jobs and keeping them running: on this machine, over ssh, by Slurm's srun, on Ray.

In: a `Config`, and a hostfile or the address of a Ray cluster. Out: the job's processes, its output, and its exit code.
Read `launcher.py` first (training, which `cluster/supervise` keeps running);
`ray_submit.py` starts tokenization, `preflight.py` checks a job before it starts.
"""
