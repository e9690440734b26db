"""What one pass over a decoded video shows, frame by frame; nothing is decided here.

In: a local video, decoded in small pictures. Out: a `Scan`: cuts, luma, motion, sharpness, text, black bars, fingerprints.
Read scan.py first; the others are detectors that it runs, and shots.py turns cuts into spans.
"""
