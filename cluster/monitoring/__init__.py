"""What a person looks at: Grafana dashboards, Prometheus alerts, and the HTML report of a run.

In: the declared metrics, and run folders. Out: files for Prometheus and Grafana, and RUN/report.html.
Read `dashboards.py` (its contents are declared in panels.py and alerts.py) and `report.py` first.
"""
