"""Train ResNet-20 on scikit-learn's handwritten digits; leave what an export needs: a checkpoint and labeled images.

python examples/train_digits.py DIR [EPOCHS]

Writes DIR/resnet20.pth, in the form that training scripts leave (weights, architecture, classes and arguments), and a
folder of images for each digit in DIR/calib (of the training split) and DIR/val (held out, a quarter of all).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import ZOO

ARCH, SIZE, MEAN, STD, BATCH, CALIBRATION = "resnet20", 32, 0.3, 0.35, 32, 256


def write(folder, images, labels):
    """Write images [N, SIZE, SIZE] uint8 into a folder for each label."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:04}.png")


def train(images, labels, epochs):
    """Return the network, trained on images [N, SIZE, SIZE] uint8."""
    torch.manual_seed(0)
    network = build(ZOO[ARCH], 10).train().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    x = (torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) / 255 - MEAN) / STD
    x, y = x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, pct_start=0.25)
    for epoch in range(epochs):
        order = torch.randperm(len(y))
        for start in range(0, len(y) - BATCH + 1, BATCH):
            pick = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x[pick]), y[pick])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    return network.eval()


out, epochs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4
data = load_digits()
scans = (data.images * (255 / 16)).astype(np.uint8)  # 8 × 8
images = np.stack([np.asarray(Image.fromarray(scan).resize((SIZE, SIZE), Image.BICUBIC)) for scan in scans])
x, held_out, y, held_out_y = train_test_split(
    images, data.target, test_size=0.25, random_state=0, stratify=data.target
)
write(out / "calib", x[:CALIBRATION], y[:CALIBRATION])
write(out / "val", held_out, held_out_y)
checkpoint = {
    "state_dict": train(x, y, epochs).state_dict(),
    "arch": ARCH,
    "class_to_idx": {str(digit): digit for digit in range(10)},
    "args": argparse.Namespace(
        img_size=SIZE, crop_pct=1.0, interpolation="bilinear", mean=[MEAN] * 3, std=[STD] * 3
    ),
}
torch.save(checkpoint, out / f"{ARCH}.pth")
print(f"{out / f'{ARCH}.pth'}, {out / 'calib'} and {out / 'val'} are written")
