"""The small LeNet-style network that the notes train on CIFAR-10."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Two convolutions and three fully connected layers for 32x32 RGB images.

    With ten classes it has 62,006 parameters. The layout goes back to LeNet-5 (LeCun et al., 1998,
    "Gradient-based learning applied to document recognition").
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, 32, 32) to the features (B, 84) that the last layer classifies."""
        x = self.pool(F.relu(self.conv1(images)))  # (B, 6, 14, 14)
        x = self.pool(F.relu(self.conv2(x)))  # (B, 16, 5, 5)
        x = x.flatten(1)  # (B, 400); a wrong image size fails in fc1 instead of changing B
        x = F.relu(self.fc1(x))  # (B, 120)
        return F.relu(self.fc2(x))  # (B, 84)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, 32, 32) to logits (B, num_classes); softmax gives probabilities."""
        return self.fc3(self.features(images))
