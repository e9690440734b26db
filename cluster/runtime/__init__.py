"""What every package needs of the machine, each written once: files, locks, processes, progress, errors.

Nothing comes in from the other packages. `process_group.py` is the one that needs torch and deepspeed; all others start light.
"""
