"""Jobs inside what a scheduler gives: the hosts of a Slurm allocation, the pods of a Kubernetes job, and the templates for both.

In: the variables that the scheduler sets. Out: hosts, the commands that reach them, a pod's place in its job, files to start from.
Read `slurm.py` first.
"""
