"""The hosts of a job: which take part, and how their ranks are started, watched and ended, over ssh or through Ray.

In:  a hostfile, or a Ray cluster. Out: the hosts of the next start; one job with one exit code on all of them.
Read `roster.py` first, then `ssh_launcher.py`; `ray_launcher.py` does the same through Ray, and on each host `tether.py` holds the ranks.
"""
