"""`videoar monitor`: a web page over live and finished runs, for those without Grafana.

In: run folders, and a Prometheus where there is one. Out: an HTTP server on this machine; nothing is written.
Read `server.py` (what is served) first, then `charts.py` (history to curves), `history.py` and `decimate.py`; `facts.py` is what a run
folder says besides curves, `static/` is the page.
"""
