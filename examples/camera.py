"""A camera loop: OpenCV's frames, the newest of which is classified while the camera goes on.

python examples/camera.py BUNDLE [CAMERA|VIDEO]
"""

import sys

import cv2

from resnet_export.runtime import open_session

bundle, source = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0"
camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
frames = classified = 0
pending = None
with open_session(bundle, prefer="latency") as session:
    session.warmup()
    while True:
        more, frame = camera.read()  # uint8 [H, W, 3], BGR
        frames += more
        if pending is not None and (pending.done() or not more):
            best = pending.result()[0]
            print(f"{best.probability:6.1%}  {best.label}", flush=True)
            classified += 1
            pending = None
        if not more:
            break
        if pending is None:  # frames that come while one is classified are dropped
            pending = session.submit(frame, top=1, color="bgr")
camera.release()
print(f"classified {classified} of {frames} frames with {session.choice}")
