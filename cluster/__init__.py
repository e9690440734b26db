"""The ground floor, and starting, watching and steering jobs. The rooms, from the ground up:

config      one YAML file to frozen sections; overrides, errors, differences      } the ground floor: imports no other package,
metrics     every metric declared once; Prometheus and JSON lines                 } and every package may import it
runtime     files, locks, ports, process group, progress, errors, exit codes      }
supervise   a running job: restarts, watchdog, stacks
batch       jobs inside a Slurm allocation or a Kubernetes job; the templates for both
hosts       a job on several hosts, over ssh, by srun or through Ray
launch      training on this machine or on hosts, tokenization on Ray; restarts; preflight checks
monitoring  Grafana dashboards, Prometheus alerts, the HTML report of a run
demo        the whole path on a few real clips
cli         the command line `videoar`; the only room that imports tokenizer, pipeline and pretrain

recipes/ holds the configurations to start from (configs/ of the clone), slurm/ and kubernetes/ the templates of those schedulers.
Importing this package checks Python, torch and the CPU (`supported.py`), so that every entry point reports a wrong one in one line.
"""

import sys

from cluster.supported import problem

if _problem := problem():
    sys.exit(f"videoar: {_problem}")
