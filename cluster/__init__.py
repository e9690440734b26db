"""The ground floor, and starting, watching and steering jobs. The rooms, from the ground up:

config      one YAML file to frozen sections; overrides, errors, differences      } the ground floor: imports no other package,
metrics     every metric declared once; Prometheus and JSON lines                 } and every package may import it
runtime     files, locks, ports, process group, progress, errors, exit codes      }
launch      training on this machine or over ssh, tokenization on Ray; restarts; preflight checks
monitoring  Grafana dashboards, Prometheus alerts, the HTML report of a run
demo        the whole path on a few real clips
cli         the command line `videoar`; the only room that imports tokenizer, pipeline and pretrain

slurm/ and kubernetes/ hold the templates of those schedulers. Importing this package checks the Python version, so that every
entry point reports a wrong one in one line.
"""

import sys

if sys.version_info[:2] != (3, 11):
    sys.exit(
        f"videoar: needs Python 3.11, found {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}); "
        "run `make setup` with python3.11 installed"
    )
