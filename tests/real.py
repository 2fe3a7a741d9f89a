"""Published weights and real images, where ``MECHFEAT_DATA`` names a folder that holds them."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def data_folder():
    root = os.environ.get("MECHFEAT_DATA")
    if not root or not Path(root).exists():
        pytest.skip("MECHFEAT_DATA is not set: no real weights and images here")
    return Path(root)


def resnet20():
    from safetensors.torch import load_file

    from mechfeat.models import CifarResNet

    model = CifarResNet(20).float()
    model.load_state_dict(load_file(data_folder() / "resnet_cifar10" / "resnet20.safetensors"))
    return model.eval()


def cifar_test_images():
    """The 2,000 recompressed test images, normalised as the weights expect, and their classes."""
    from PIL import Image

    images, labels = [], []
    with zipfile.ZipFile(data_folder() / "cifar10_jpg_subset" / "test_200_per_class.zip") as archive:
        for entry in sorted(e for e in archive.namelist() if e.endswith(".jpg")):
            raw = bytearray(Image.open(io.BytesIO(archive.read(entry))).convert("RGB").tobytes())
            images.append(torch.frombuffer(raw, dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1).float() / 255)
            labels.append(CLASSES.index(entry.split("/")[1]))
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.stack(images) - mean) / std, torch.tensor(labels)
