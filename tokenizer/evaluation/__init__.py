"""How good reconstructions are. In come original and reconstructed clips, out come PSNR, SSIM, LPIPS, FVD and bit statistics.

Begin with `metrics.py`, then `set_distances.py` (KVD, and FVD without the bias of few clips). `lpips.py` and `i3d.py` are the networks
behind two of the scores; `fetch.py` downloads their public weights once, `pretrained.py` finds and checks them at every use.
"""
