"""Modules without a test file of their own, each with the test that covers it."""

from __future__ import annotations

CLUSTER: dict[str, str] = {
    "cluster/cli/model.py": "tests/system/test_main_job.py",
    "cluster/cli/options.py": "tests/cluster/cli/test_main.py",
    "cluster/launch/host_facts.py": "tests/cluster/launch/test_host_checks.py",
    "cluster/monitoring/host_panels.py": "tests/cluster/monitoring/test_dashboards.py",
    "cluster/monitoring/train_panels.py": "tests/cluster/monitoring/test_dashboards.py",
    "cluster/monitoring/panels.py": "tests/cluster/monitoring/test_dashboards.py",
    "cluster/monitoring/plots.py": "tests/cluster/monitoring/test_report.py",
}
TOKENIZER: dict[str, str] = {
    "tokenizer/network/blocks.py": "tests/tokenizer/network/test_network.py",
    "tokenizer/network/causal_conv.py": "tests/tokenizer/network/test_network.py",
    "tokenizer/training/engine.py": "tests/tokenizer/training/test_train.py",
    "tokenizer/training/trainer.py": "tests/tokenizer/training/test_train.py",
}
PIPELINE: dict[str, str] = {
    "pipeline/books/merged_files.py": "tests/pipeline/books/test_merge.py",
    "pipeline/books/settle.py": "tests/pipeline/books/test_merge.py",
    "pipeline/books/tasks.py": "tests/pipeline/books/test_merge.py",
    "pipeline/job/task_session.py": "tests/pipeline/maintenance/test_verify.py",
    "pipeline/maintenance/check_shards.py": "tests/pipeline/maintenance/test_verify.py",
    "pipeline/maintenance/tally.py": "tests/pipeline/maintenance/test_verify.py",
    "pipeline/video/info.py": "tests/pipeline/video/test_reader.py",
    "pipeline/workers/encode_actor.py": "tests/pipeline/job/test_tokenize.py",
}
PRETRAIN: dict[str, str] = {
    "pretrain/attention/varlen_plan.py": "tests/pretrain/attention/test_planner.py",
    "pretrain/data/dataset.py": "tests/pretrain/data/test_token_datasets.py",
    "pretrain/data/sample_reader.py": "tests/pretrain/data/test_loader.py",
    "pretrain/engine/config.py": "tests/pretrain/engine/test_deepspeed_config.py",
    "pretrain/engine/engine.py": "tests/system/test_training.py",
    "pretrain/engine/zero3.py": "tests/system/test_training.py",
    "pretrain/evaluation/report.py": "tests/pretrain/evaluation/test_evaluate.py",
    "pretrain/evaluation/set_scores.py": "tests/pretrain/evaluation/test_evaluate.py",
    "pretrain/loop/job.py": "tests/system/test_stages.py",
    "pretrain/loop/periodic_samples.py": "tests/system/test_training.py",
    "pretrain/loop/validation.py": "tests/system/test_training.py",
    "pretrain/loop/warm_up.py": "tests/system/test_compiled_stages.py",
}
COVERED = {**CLUSTER, **TOKENIZER, **PIPELINE, **PRETRAIN}
