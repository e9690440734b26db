"""The dashboards of transformer training, as declarations: overview, scales, ranks, checkpoints and restarts."""

from __future__ import annotations

from cluster.monitoring.panels import RATE, RUN, Dashboard, Panel, stat

TRAINING = Dashboard(
    "videoar-training",
    "VideoAR training",
    (
        stat("step", f"videoar_train_step{{{RUN}}}", "Last completed optimizer step."),
        stat(
            "done",
            f"videoar_train_step{{{RUN}}} / videoar_train_steps{{{RUN}}}",
            "Share of the curriculum's steps.",
            "percentunit",
        ),
        stat("time left", f"videoar_train_eta_seconds{{{RUN}}}", "At the pace of the last steps.", "s"),
        stat("stage", f"videoar_train_stage{{{RUN}}}", "Index of the curriculum stage, from 0."),
        stat("loss", f"videoar_train_loss{{{RUN}}}", "Loss of the last step, in nats per bit; an untrained model has 0.693."),
        stat("tokens", f"videoar_train_tokens_total{{{RUN}}}", "Tokens trained on since the last start."),
        stat(
            "since the last step",
            f"time() - max(videoar_train_last_step_timestamp_seconds{{{RUN}}})",
            "If this is much longer than a step, the job hangs.",
            "s",
        ),
        Panel("loss", "Should fall; jumps at the start of a stage.", ((f"videoar_train_loss{{{RUN}}}", "{{run}}"),)),
        Panel(
            "gradient norm",
            "Before clipping; a slow rise over many steps precedes a spike.",
            ((f"videoar_train_grad_norm{{{RUN}}}", "{{run}}"),),
            log=True,
        ),
        Panel("learning rate", "Follows the schedule.", ((f"videoar_train_learning_rate{{{RUN}}}", "{{run}}"),), "sci"),
        Panel(
            "throughput",
            "Tokens per second, over all ranks: of the last step, and over five minutes, restarts and validation included.",
            (
                (f"videoar_train_tokens_per_second{{{RUN}}}", "last step"),
                (f"run:videoar_train_tokens:rate5m{{{RUN}}}", "five minutes"),
            ),
        ),
        Panel(
            "model FLOPs utilization",
            "Model FLOPs over the device's peak; absent if the peak is unknown.",
            ((f"videoar_train_mfu_ratio{{{RUN}}}", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "seconds per step, by phase",
            "Shows which part of a step became slower.",
            ((f"videoar_train_phase_seconds{{{RUN}}}", "{{phase}}"),),
            "s",
        ),
        Panel(
            "fraction of time spent waiting for data",
            "Above a few percent, loading is the bottleneck: raise train.prefetch, use faster disks.",
            ((f"rate(videoar_train_data_wait_seconds_total{{{RUN}}}{RATE})", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "compilations and padding",
            "A stage that compiles after its warm-up loses seconds each time (the log says why); padding is computed and thrown away.",
            (
                (f"increase(videoar_train_compilations_total{{{RUN}}}{RATE})", "functions compiled"),
                (f"videoar_train_padding_ratio{{{RUN}}}", "fraction of positions that are padding"),
            ),
        ),
        Panel(
            "skipped steps, replaced samples, failures aside",
            "Steps without a weight update, by reason; samples that failed their checksum; reports, samples and validations that failed.",
            (
                (f"increase(videoar_train_skipped_steps_total{{{RUN}}}{RATE})", "skipped: {{reason}}"),
                (f"increase(videoar_train_corrupt_samples_total{{{RUN}}}{RATE})", "corrupt samples"),
                (f"increase(videoar_train_aside_failures_total{{{RUN}}}{RATE})", "failed aside: {{what}}"),
            ),
        ),
        Panel("memory", "Resident, peak and device memory.", ((f"videoar_train_memory_bytes{{{RUN}}}", "{{kind}}"),), "bytes"),
    ),
)

SCALES = Dashboard(
    "videoar-scales",
    "VideoAR training: scales",
    (
        Panel(
            "loss by scale",
            "Coarse scales converge first; if one rises alone, check its corruption and weight.",
            ((f"videoar_train_scale_loss{{{RUN}}}", "{{scale}}"),),
        ),
        Panel(
            "bit accuracy by scale",
            "Starts at 50 %; the finest scale is the last to improve.",
            ((f"videoar_train_bit_accuracy_ratio{{{RUN}}}", "{{scale}}"),),
            "percentunit",
        ),
        Panel(
            "spread between scales",
            "How far the worst scale is above the best one; it should shrink.",
            (
                (f"max(videoar_train_scale_loss{{{RUN}}}) - min(videoar_train_scale_loss{{{RUN}}})", "worst - best"),
                (f"videoar_train_loss{{{RUN}}}", "loss, weighted"),
            ),
        ),
        Panel(
            "validation loss",
            "On held-out shards; if it rises while the loss falls, the model memorizes.",
            ((f"videoar_train_validation_loss{{{RUN}}}", "{{bucket}}"),),
        ),
    ),
)

RANKS = Dashboard(
    "videoar-ranks",
    "VideoAR training: ranks and stragglers",
    (
        Panel(
            "seconds since each rank's heartbeat",
            "A rank far above the others is stopped, cut off or dead.",
            ((f"time() - videoar_train_heartbeat_timestamp_seconds{{{RUN}}}", "rank {{rank}}"),),
            "s",
        ),
        Panel(
            "step time by rank",
            "All ranks wait for the slowest; of more than 64 ranks, the 16 longest.",
            ((f"videoar_train_rank_step_seconds{{{RUN}}}", "rank {{rank}}"),),
            "s",
        ),
        Panel(
            "data wait by rank",
            "A rank that waits for its data holds all others up.",
            ((f"videoar_train_rank_data_seconds{{{RUN}}}", "rank {{rank}}"),),
            "s",
        ),
        Panel(
            "main memory by rank",
            "A rank that grows alone leaks, and will be killed.",
            ((f"videoar_train_rank_resident_bytes{{{RUN}}}", "rank {{rank}}"),),
            "bytes",
        ),
        Panel(
            "device memory by rank",
            "0 without a GPU.",
            ((f"videoar_train_rank_device_bytes{{{RUN}}}", "rank {{rank}}"),),
            "bytes",
        ),
    ),
)

CHECKPOINTS = Dashboard(
    "videoar-checkpoints",
    "VideoAR training: checkpoints and restarts",
    (
        stat("restarts", f"videoar_train_restarts_total{{{RUN}}}", "Restarts after a failure; read the log of the last one."),
        stat("disk free", f"videoar_disk_free_ratio{{{RUN}}}", "Of the disk that holds the run folder.", "percentunit"),
        stat("bytes free", f"videoar_disk_free_bytes{{{RUN}}}", "Of the same disk.", "bytes"),
        Panel(
            "checkpoints",
            "How long a checkpoint blocks training, and how much work a crash would lose now.",
            (
                (f"videoar_train_checkpoint_seconds{{{RUN}}}", "duration of the last one"),
                (f"time() - videoar_train_checkpoint_last_success_timestamp_seconds{{{RUN}}}", "age of the newest"),
            ),
            "s",
        ),
        Panel(
            "answers",
            "1 while the job answers; 0 between its death and its restart.",
            ((f'up{{job="videoar",{RUN}}}', "{{instance}}"),),
        ),
        Panel("step", "Falls back at each restart, to the newest checkpoint.", ((f"videoar_train_step{{{RUN}}}", "{{run}}"),)),
    ),
)
