from cluster.metrics import METRICS, PREFIX


def test_names_follow_prometheus_rules_and_hold_their_unit() -> None:
    for name, metric in METRICS.items():
        assert metric.exported == PREFIX + name
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert metric.help.endswith("."), name
        assert len(metric.labels) <= 2, name
        if metric.kind == "histogram":
            assert name.endswith("_seconds"), name
