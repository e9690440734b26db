"""Keeping a job running: its processes, their heartbeats, restarts, what it leaves when it hangs.

In: a command, and the run folder whose heartbeats tell how its ranks are. Out: one exit code, and stacks of what hung.
Read `supervisor.py` first.
"""
