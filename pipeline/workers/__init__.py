"""The work of a job as Ray tasks and actors, and what happens when one of them dies or hangs.

In: the videos of a generation; shard groups that are not committed. Out: part files, merged into the plan; committed shards.
Planning: plan_driver.py (the driver) hands parts to plan_task.py (one task, free of torch). Encoding: encode_pool.py (the driver)
hands groups to encode_actor.py (one codec). Read the two drivers first.
"""
