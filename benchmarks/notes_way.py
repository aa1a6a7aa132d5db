"""The notes' way of training, for comparison: written anew, corrected only where it would not run.

Images are opened and normalised one by one, a step ends with `.item()`, the figure is 12 by 48
inches, and softmax is taken image by image. Only compare.py uses this file.
"""

from pathlib import Path

import figures  # noqa: F401  adds the lesson to the path
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchvision
from torch import nn, optim
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision import transforms
from torchvision.datasets import CIFAR10

from data import ImageDataset, read_source
from model import Net
from train_cifar import parse_args


class OneByOne(CIFAR10):
    """The data set of torchvision: an array in memory, images made when asked for."""

    def __init__(self, dataset: ImageDataset):  # its own reads CIFAR-10's files
        self.data = dataset.images.permute(0, 2, 3, 1).numpy()  # (N, 32, 32, 3)
        self.targets = dataset.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )
        self.target_transform = None


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
        ax.imshow((images[index] / 2 + 0.5).mean(dim=0).numpy(), cmap="Greys")
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
        writer.add_pr_curve(f"pr curve/{name}", labels == index, probs[:, index], global_step=0)
    return (probs.argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    """Train for two epochs; the flags are those of train_cifar.py."""
    args = parse_args()
    torch.manual_seed(args.seed)
    train_set, test_set, _ = read_source(args.data, args.data_dir, ())
    train_images = OneByOne(train_set.subset(args.train_images, args.seed))
    order = torch.Generator()
    loader = DataLoader(train_images, batch_size=4, shuffle=True, generator=order)
    classes = train_set.classes
    net = Net(len(classes))
    with SummaryWriter(Path(args.log_dir, args.run_name)) as writer:
        images = next(iter(loader))[0]
        writer.add_image("training images", torchvision.utils.make_grid(images / 2 + 0.5))
        writer.add_graph(net, images)
        order.manual_seed(args.seed)  # as in our loader: both ways see the same batches
        train(net, loader, writer, classes, epochs=2)
        writer.add_scalar("trained", 1)
        accuracy = evaluate(net, DataLoader(OneByOne(test_set), batch_size=4), writer, classes)
        writer.add_scalar("test/accuracy", accuracy)


if __name__ == "__main__":
    main()
