"""From raw videos to token shards: `videoar tokenize` and what looks after its output. Rooms, from the ground up:

records.py      what crosses room borders: clips, rejects, samples
video/          the only room that imports `av`: frames at given times, writing an mp4
config.py       the `corpus` and `pipeline` sections of the configuration
shards/         the format on disk: layout, schemas, writer, reader, manifest
corpus/         which videos there are, and a local file of each
datasets/       public data sets made ready: `videoar data`
analysis/       one pass over a decoded video: cuts, luma, motion, sharpness, text, black bars, fingerprints
decoding/       decoding in a killable child process
tokenizer_jobs/ the tokenizer on raw videos: training clips, scores, reconstructions
books/          the tables of a folder: parts merged, duplicates found, shard groups cut, the index, old books upgraded
planning/       a video to its clips: filters, captions
encoding/       planned clips to committed shards
maintenance/    verify, inspect and take down
workers/        the Ray tasks and actors that plan and encode
job/            `videoar tokenize`, the driver
"""
