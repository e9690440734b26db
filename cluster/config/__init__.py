from cluster.config.loader import *  # noqa: F403
