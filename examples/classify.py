"""Embed the runtime: open a bundle, classify image files, and say what ran.

python examples/classify.py BUNDLE IMAGE...
"""

import sys

from resnet_export.runtime import open_session

bundle, *images = sys.argv[1:]
with open_session(bundle) as session:
    for image, predictions in zip(images, session.classify(images, top=3), strict=True):
        print(image)
        for prediction in predictions:
            print(f"  {prediction.probability:6.1%}  {prediction.label}")
    print(f"ran {session.choice}")
