"""What every package needs of the machine, each written once: files, locks, ports, processes, progress, errors.

Imports no other package. Only `process_group.py` needs torch and deepspeed; the other modules load fast.
Read `atomic_files.py`, `process_group.py` and `errors.py` first: the others are small tools.
"""
