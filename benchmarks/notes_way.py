"""The notes' way of training, for comparison: written anew, corrected only where it would not run.

Images are opened and normalised one by one, a step ends with `.item()`, the figure is 12 by 48
inches, and softmax is taken image by image. Nothing else in the project uses this file.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data import ImageDataset


class OneByOne(Dataset):
    """What torchvision.datasets.CIFAR10 does: an array in memory, images made when asked for."""

    def __init__(self, dataset: ImageDataset):
        self.pixels = dataset.images.permute(0, 2, 3, 1).numpy()  # (N, 32, 32, 3)
        self.targets = dataset.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def show_image(image: torch.Tensor, one_channel: bool) -> None:
    """Draw one normalised image, in grey where the notes do."""
    pixels = image / 2 + 0.5
    if one_channel:
        plt.imshow(pixels.mean(dim=0).numpy(), cmap="Greys")
    else:
        plt.imshow(np.transpose(pixels.numpy(), (1, 2, 0)))


def show_start(writer, net: nn.Module, images: torch.Tensor) -> None:
    """The first batch as a grid, and the graph of the net."""
    grid = torchvision.utils.make_grid(images)
    show_image(grid, one_channel=False)
    writer.add_image("training images", grid)
    writer.add_graph(net, images)


def show_report(writer, net, images, labels, classes, loss: float, step: int) -> None:
    """The mean loss, and the batch with what the net says of it."""
    writer.add_scalar("training loss", loss, step)
    with torch.no_grad():
        output = net(images)
    _, preds = torch.max(output, 1)
    probs = [F.softmax(row, dim=0)[pred].item() for pred, row in zip(preds, output, strict=True)]
    figure = plt.figure(figsize=(12, 48))
    for index in range(len(images)):
        ax = figure.add_subplot(1, 4, index + 1, xticks=[], yticks=[])
        show_image(images[index], one_channel=True)
        guess, truth = classes[preds[index]], classes[labels[index]]
        color = "green" if guess == truth else "red"
        ax.set_title(f"{guess}, {probs[index]:.1%}\n(label: {truth})", color=color)
    writer.add_figure("predictions vs. actuals", figure, global_step=step)


def train(net: nn.Module, loader: DataLoader, writer, classes, epochs: int) -> None:
    """The notes' loop: a report every 2,000 batches."""
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(epochs):
        running_loss = 0.0
        for i, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 1999:
                step = epoch * len(loader) + i
                show_report(writer, net, images, labels, classes, running_loss / 2000, step)
                running_loss = 0.0


def evaluate(net: nn.Module, loader: DataLoader, writer, classes) -> float:
    """Probabilities of the test images, one by one, a PR curve per class; returns the accuracy."""
    probs, labels = [], []
    with torch.no_grad():
        for images, targets in loader:
            probs.append(torch.stack([F.softmax(row, dim=0) for row in net(images)]))
            labels.append(targets)
    probs, labels = torch.cat(probs), torch.cat(labels)
    for index, name in enumerate(classes):
        writer.add_pr_curve(name, labels == index, probs[:, index], global_step=0)
    return (probs.argmax(dim=1) == labels).float().mean().item()
