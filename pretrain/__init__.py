"""The transformer over token shards: training on any number of ranks, and sampling. From the ground up:

    model/       the transformer, its attention, its token layout
    data/        token shards to micro-batches; the order of samples is a pure function of the step
    runs/        what a run folder tells about its run
    objective/   corruption, labels, loss, packing, sequence parallelism
    engine/      DeepSpeed, the optimizer, the moving average of the weights
    checkpoint/  written in the background, read at any number of ranks, exported
    estimate/    memory, FLOPs and hours, before a job starts
    sampling/    videos from text, or from the beginning of a video
    evaluation/  scores on held-out clips: `videoar eval`
    loop/        resume, guard, metrics, validation, samples, stop requests
    train.py     the loop itself: `deepspeed --module pretrain.train`, started on every rank

Of the other packages it knows the tokenizer and, of `pipeline`, the records, the shard format and the door to video.
"""
