"""The dashboards of GPUs and hosts, as declarations of queries of what DCGM's exporter and node_exporter export."""

from __future__ import annotations

from cluster.monitoring.panels import RATE, Dashboard, Panel

EXTERNAL = frozenset(
    {
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_POWER_USAGE",
        "DCGM_FI_DEV_SM_CLOCK",
        "DCGM_FI_DEV_XID_ERRORS",
        "node_cpu_seconds_total",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_disk_read_bytes_total",
        "node_disk_written_bytes_total",
        "node_network_receive_bytes_total",
        "node_network_transmit_bytes_total",
        "node_load1",
        "node_pressure_memory_waiting_seconds_total",
    }
)
"""Series of other exporters that panels and alerts ask for."""
_AT = 'instance=~"$instance"'
_GPU = "{{instance}} GPU {{gpu}}"


def _gpu(title: str, metric: str, description: str, unit: str) -> Panel:
    return Panel(title, description, ((f"DCGM_FI_{metric}{{{_AT}}}", _GPU),), unit)


GPUS = Dashboard(
    "videoar-gpus",
    "VideoAR GPUs",
    (
        _gpu("busy", "DEV_GPU_UTIL", "Share of time with any kernel running; high does not mean fast.", "percent"),
        _gpu(
            "tensor cores",
            "PROF_PIPE_TENSOR_ACTIVE",
            "Share of cycles in which they compute; this is what is paid for.",
            "percentunit",
        ),
        _gpu("memory used", "DEV_FB_USED", "A GPU that stands out from the others carries a foreign process.", "decmbytes"),
        _gpu("temperature", "DEV_GPU_TEMP", "Clocks fall above about 85 degrees.", "celsius"),
        _gpu("power", "DEV_POWER_USAGE", "Far below the others: throttled or idle.", "watt"),
        _gpu("clock", "DEV_SM_CLOCK", "A GPU with a lower clock holds all ranks up.", "hertz"),
        _gpu("last fault (Xid)", "DEV_XID_ERRORS", "0 is healthy; 79 means that the GPU fell off the bus.", "short"),
    ),
    "instance",
)

HOSTS = Dashboard(
    "videoar-hosts",
    "VideoAR hosts",
    (
        Panel(
            "CPU busy",
            "Near 100 %, decoding or loading is short of cores.",
            ((f'1 - avg by (instance) (rate(node_cpu_seconds_total{{{_AT},mode="idle"}}{RATE}))', "{{instance}}"),),
            "percentunit",
        ),
        Panel("load", "Processes that want a core.", ((f"node_load1{{{_AT}}}", "{{instance}}"),)),
        Panel(
            "memory available",
            "Near 0, processes are killed.",
            ((f"node_memory_MemAvailable_bytes{{{_AT}}} / node_memory_MemTotal_bytes{{{_AT}}}", "{{instance}}"),),
            "percentunit",
        ),
        Panel(
            "time lost for want of memory",
            "Share of time in which something waited for memory.",
            ((f"rate(node_pressure_memory_waiting_seconds_total{{{_AT}}}{RATE})", "{{instance}}"),),
            "percentunit",
        ),
        Panel(
            "disk free",
            "By mount point.",
            ((f"node_filesystem_avail_bytes{{{_AT}}} / node_filesystem_size_bytes{{{_AT}}}", "{{instance}} {{mountpoint}}"),),
            "percentunit",
        ),
        Panel(
            "disk traffic",
            "Bytes per second, read and written.",
            (
                (f"sum by (instance) (rate(node_disk_read_bytes_total{{{_AT}}}{RATE}))", "{{instance}} read"),
                (f"sum by (instance) (rate(node_disk_written_bytes_total{{{_AT}}}{RATE}))", "{{instance}} written"),
            ),
            "Bps",
        ),
        Panel(
            "network traffic",
            "Bytes per second, received and sent; RDMA does not pass here.",
            (
                (f"sum by (instance) (rate(node_network_receive_bytes_total{{{_AT}}}{RATE}))", "{{instance}} received"),
                (f"sum by (instance) (rate(node_network_transmit_bytes_total{{{_AT}}}{RATE}))", "{{instance}} sent"),
            ),
            "Bps",
        ),
    ),
    "instance",
)
