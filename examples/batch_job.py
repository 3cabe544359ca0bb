"""A batch job: every image below a folder into a CSV file, in constant memory; what cannot be read is listed.

python examples/batch_job.py BUNDLE FOLDER OUT.csv
"""

import csv
import sys
from pathlib import Path

from resnet_export.runtime import ResnetExportError, open_session

bundle, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
paths = sorted(
    path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
)
failed = 0
with open_session(bundle, prefer="throughput") as session, out.open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["image", "label", "probability"])
    for path, result in zip(paths, session.stream(paths, top=1, on_error="return"), strict=True):
        if isinstance(result, ResnetExportError):
            failed += 1
            print(f"failed: {result}", file=sys.stderr)
            continue
        table.writerow([path.relative_to(folder), result[0].label, f"{result[0].probability:.4f}"])
    print(f"{len(paths) - failed} of {len(paths)} images with {session.choice}")
sys.exit(1 if failed else 0)
