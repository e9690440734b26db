"""The only room that imports `av`: what a video holds, its frames at given times, and writing an mp4.

In:  paths of local files, and times in seconds from the video's first shown frame.
Out: `VideoInfo`, uint8 RGB frames, H.264 mp4 files; every failure is a `VideoError` with a one-word reason.

Frame choice, resize and crop are defined here and nowhere else:
- the frame at time t is the last one whose own time is at most t (what a player shows at t), never an index (sampling.py);
- rotation and mirroring of the file's display matrix, and the pixel aspect ratio, are applied (picture.py);
- the picture is resized (bicubic, antialiased) so that it just covers height x width, and centre-cropped;
- colours become RGB by the matrix and range that the file names; a file that names none is read as BT.601.
Decoding takes one thread, or a GPU (device.py); parallelism comes from processes. Read reader.py first.
"""

from pipeline.video.container import VideoError, regular
from pipeline.video.device import CPU, Device, DeviceError
from pipeline.video.info import VideoInfo, describe, probe
from pipeline.video.picture import Frames, luma, thumbnail
from pipeline.video.reader import Reader
from pipeline.video.sampling import EPSILON, Request, RequestError, iter_frames, read_clips, read_frames
from pipeline.video.writer import VideoWriteError, VideoWriter, write_video

__all__ = [
    "CPU",
    "EPSILON",
    "Device",
    "DeviceError",
    "Frames",
    "Reader",
    "Request",
    "RequestError",
    "VideoError",
    "VideoInfo",
    "VideoWriteError",
    "VideoWriter",
    "describe",
    "iter_frames",
    "luma",
    "probe",
    "read_clips",
    "read_frames",
    "regular",
    "thumbnail",
    "write_video",
]
