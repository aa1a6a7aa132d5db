"""The views: what is written to the event file, against independent calculations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_events
from PIL import Image
from sklearn import metrics
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

import viz
from model import Net

TEN = [f"class {index}" for index in range(10)]


@pytest.fixture
def writer(tmp_path):
    writer = SummaryWriter(tmp_path / "run")
    yield writer
    writer.close()


def written(writer: SummaryWriter) -> dict[str, list]:
    writer.flush()
    return read_events(Path(writer.log_dir))


def image_size(value) -> tuple[int, int]:
    """Width and height of an image value, which holds them as text before the PNG itself."""
    width, height = value.tensor.string_val[:2]
    return int(width), int(height)


def predictions(samples: int, classes: int):
    """Probabilities (N, C) that are better than chance, and labels (N,)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=random)
    logits = torch.randn(samples, classes, generator=random)
    logits[torch.arange(samples), labels] += 1
    return logits.softmax(dim=1), labels


class Fixed(torch.nn.Module):
    """A net that gives the same logits to whatever it sees."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


# ----------------------------------------------------------------------------- probabilities, PR


def test_images_to_probs_gives_the_most_probable_class_and_its_softmax():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])
    preds, probs = viz.images_to_probs(Fixed(logits), torch.zeros(2, 3, 32, 32))
    assert preds.tolist() == [1, 0]
    expected = [np.exp(3) / np.exp([1, 3, 2]).sum(), np.exp(5) / (np.exp(5) + 2)]
    np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-6)


def test_images_to_probs_sets_dropout_aside_and_leaves_the_mode_as_it_was():
    net = torch.nn.Sequential(torch.nn.Dropout(0.99), torch.nn.Flatten(), torch.nn.Linear(3072, 5))
    images = torch.randn(4, 3, 32, 32)
    first, second = (viz.images_to_probs(net, images)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert net.training


def test_pr_curves_are_scikit_learns_at_the_same_thresholds(writer):
    probs, labels = predictions(2000, 4)
    viz.add_pr_curves(writer, probs, labels, TEN[:4], 7)
    events = written(writer)
    assert sorted(events) == TEN[:4]
    for index, name in enumerate(TEN[:4]):
        ((step, value),) = events[name]
        curve = tensor_util.make_ndarray(value.tensor)  # tp, fp, tn, fn, precision, recall
        assert step == 7 and curve.shape == (6, 127)
        truth = (labels == index).numpy()
        for position in (0, 10, 40, 63, 100, 126):
            # TensorBoard puts a score into the bin floor(score * 126) and counts from that bin up.
            taken = np.floor(probs[:, index].numpy() * 126) >= position
            precision = metrics.precision_score(truth, taken, zero_division=0)
            recall = metrics.recall_score(truth, taken)
            np.testing.assert_allclose(curve[4:, position], [precision, recall], rtol=1e-5)


def test_the_pr_curve_counts_the_truth_and_not_the_predictions(writer):
    probs, labels = predictions(500, 3)
    viz.add_pr_curve_tensorboard(writer, 1, probs, labels, TEN, 0)
    ((_, value),) = written(writer)["class 1"]
    positives = tensor_util.make_ndarray(value.tensor)[0, 0]  # TP when everything is taken
    assert positives == (labels == 1).sum()
    assert positives != (probs.argmax(dim=1) == 1).sum()


def test_class_report_is_scikit_learns():
    probs, labels = predictions(300, 5)
    head, *rows = viz.class_report(probs, labels, TEN[:5])
    assert head == ("class", "images", "precision", "recall", "average precision")
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        labels, probs.argmax(dim=1), zero_division=0
    )
    for index, row in enumerate(rows):
        ap = metrics.average_precision_score(labels == index, probs[:, index])
        numbers = [f"{x:.3f}" for x in (precision[index], recall[index], ap)]
        assert row == (TEN[index], str(images[index]), *numbers)


@pytest.mark.parametrize("decimals", [1, 2, 8])  # few decimals: many samples share a score
def test_average_precision_is_scikit_learns_with_ties_too(decimals):
    random = np.random.default_rng(1)
    scores, truth = random.random(200).round(decimals), random.random(200) < 0.3
    expected = metrics.average_precision_score(truth, scores)
    assert viz.average_precision(scores, truth) == pytest.approx(expected)


def test_a_class_without_test_images_or_predictions_gives_zeros():
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    rows = viz.class_report(probs, torch.tensor([0, 1]), TEN[:3])
    assert rows[2][1:4] == ("1", "0.000", "0.000")
    assert rows[3][1:] == ("0", "0.000", "0.000", "0.000")


# --------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_predictions_are_titled_and_coloured_for_the_batch_they_get(batch):
    probs, labels = predictions(batch, 10)
    images = torch.rand(batch, 3, 32, 32) * 2 - 1
    figure = viz.plot_classes_preds(Fixed(probs.log()), images, labels, TEN)
    texts = figure.texts
    assert len(texts) == batch
    for text, p, label in zip(texts, probs, labels, strict=True):
        best = int(p.argmax())
        assert text.get_text() == f"{TEN[best]}, {p[best]:.1%}\n(label: {TEN[label]})"
        assert text.get_color() == ("green" if best == label else "red")


def test_images_are_drawn_in_their_own_colours_below_their_titles():
    colors = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    images = colors[:, :, None, None].expand(3, 3, 32, 32)
    figure = viz.plot_images(images, ["red", "green", "blue"])
    pixels = figure.images[0].get_array()
    height, width, _ = pixels.shape
    for text, expected in zip(figure.texts, np.eye(3), strict=True):
        x, y = int(text.get_position()[0] * width), int((1 - text.get_position()[1]) * height)
        np.testing.assert_allclose(pixels[y + 4 * 18, x], expected, atol=1e-6)
        assert (pixels[:y, x] == 1).all()  # white behind the title


def test_long_class_names_are_cut():
    assert viz.shorten("automobile") == "automobile"
    assert viz.shorten("a name that goes on and on") == "a name that goe…"


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_every_figure_takes_any_number_of_classes(writer, classes):
    names = [f"种类 {index}" for index in range(classes)]
    probs, labels = predictions(3 * classes, classes)
    net, images = Net(classes), torch.rand(5, 3, 32, 32) * 2 - 1
    viz.add_image_grid(writer, images, labels[:5], names)
    viz.add_predictions(writer, net, images, labels[:5], names, 1)
    viz.add_mistakes(writer, images, probs[:5], labels[:5], names, 1)
    viz.add_confusion_matrix(writer, probs, labels, names, 1)
    events = written(writer)
    tags = {"training images", "predictions vs. actuals", "worst mistakes", "confusion matrix"}
    assert set(events) == tags
    for tag in tags:
        ((step, value),) = events[tag]
        assert step == (0 if tag == "training images" else 1)
        assert min(image_size(value)) > 50


def test_no_mistakes_at_all_is_no_error(writer):
    viz.add_mistakes(
        writer, torch.zeros(0, 3, 32, 32), torch.zeros(0, 10), torch.zeros(0).long(), TEN, 0
    )
    assert "worst mistakes" not in written(writer)


def test_confusions_are_scikit_learns():
    probs, labels = predictions(400, 6)
    preds = probs.argmax(dim=1)
    expected = metrics.confusion_matrix(labels, preds)
    np.testing.assert_array_equal(viz.count_confusions(preds, labels, 6), expected)


def test_feature_maps_answer_to_the_part_of_the_image_shown_beside_them(writer, monkeypatch):
    drawn = {}
    monkeypatch.setattr(viz, "make_grid", lambda tiles, **_: drawn.setdefault("tiles", tiles)[0])
    conv = Net().conv1
    with torch.no_grad():  # a filter that hands through the pixel in its middle, in red
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[2, 0, 2, 2] = 1
    image = torch.rand(3, 32, 32) * 2 - 1
    viz.add_feature_maps(writer, conv, image, 0)
    tiles = drawn["tiles"][:, :, ::4, ::4]  # undo the enlargement
    torch.testing.assert_close(tiles[0], image[:, 2:30, 2:30] / 2 + 0.5)
    red = image[0, 2:30, 2:30].clamp(min=0)
    torch.testing.assert_close(tiles[3, 0], red / red.max())


def test_filters_are_an_image_of_all_six(writer):
    viz.add_filters(writer, Net().conv1, 3)
    ((step, value),) = written(writer)["filters"]
    assert step == 3
    assert image_size(value) == (6 * (5 * 16 + 8) + 8, 5 * 16 + 2 * 8)


# ------------------------------------------------------------------------------ the other views


def graph_nodes(log_dir: str) -> list:
    (path,) = Path(log_dir).glob("events.out.tfevents.*")
    for event in EventFileLoader(str(path)).Load():
        if event.graph_def:
            return list(GraphDef.FromString(event.graph_def).node)
    return []


def test_the_graph_holds_every_layer_and_warns_of_nothing(writer, recwarn):
    net = Net()
    net.conv1.eval()  # frozen by its owner: must stay so
    viz.add_net_graph(writer, net, torch.zeros(1, 3, 32, 32))
    writer.flush()
    names = {node.name for node in graph_nodes(writer.log_dir)}
    for layer in ("conv1", "pool", "conv2", "fc1", "fc2", "fc3"):
        assert any(f"[{layer}]" in name for name in names), (layer, names)
    assert net.training and net.fc1.training and not net.conv1.training
    assert not recwarn.list


def test_a_net_that_cannot_be_traced_costs_a_warning_only(writer):
    class Stubborn(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("no graph of me")

    with pytest.warns(UserWarning, match="could not be drawn: no graph of me"):
        viz.add_net_graph(writer, Stubborn(), torch.zeros(1, 3, 32, 32))


def test_histograms_are_numpys(writer):
    values = torch.randn(40, 25)
    viz.add_histogram(writer, "some", values, 5)
    ((step, value),) = written(writer)["some"]
    left, right, counts = tensor_util.make_ndarray(value.tensor).T
    expected, edges = np.histogram(values, bins=64)
    assert step == 5 and counts.sum() == 1000
    np.testing.assert_allclose([left[0], right[-1]], edges[[0, -1]], rtol=1e-5)
    # A value on the very edge of two bins may fall on either side of it.
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 1


@pytest.mark.parametrize(
    "values, counted",
    [([1.0, float("nan"), 2.0, float("inf")], 2), ([3.0, 3.0], 2), ([0.0], 1), ([-1e30, 1e30], 2)],
)
def test_histograms_of_odd_values_count_the_finite_ones(writer, values, counted):
    viz.add_histogram(writer, "odd", torch.tensor(values), 0)
    ((_, value),) = written(writer)["odd"]
    assert tensor_util.make_ndarray(value.tensor)[:, 2].sum() == counted


def test_histograms_of_nothing_are_left_out(writer):
    viz.add_histogram(writer, "none", torch.tensor([float("nan")]), 0)
    assert not written(writer)


def test_weights_and_gradients_of_every_layer_have_histograms(writer):
    net = Net()
    viz.add_histograms(writer, net, 0)
    names = {name for name, _ in net.named_parameters()}
    assert set(written(writer)) == {f"weights/{name}" for name in names}  # no gradients yet
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_histograms(writer, net, 1)
    assert set(written(writer)) == {
        f"{kind}/{name}" for name in names for kind in ("weights", "gradients")
    }


def test_the_gradient_norm_is_over_all_parameters(writer):
    net = Net()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_training_scalars(writer, net, 0.1, 1234.5, 9)
    events = written(writer)
    flat = np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
    values = {tag: (step, value.tensor.float_val[0]) for tag, ((step, value),) in events.items()}
    assert values["gradient norm"] == (9, pytest.approx(np.linalg.norm(flat), rel=1e-5))
    assert values["learning rate"] == (9, pytest.approx(0.1))
    assert values["images per second"] == (9, 1234.5)


def test_the_projector_gets_features_names_and_thumbnails(writer):
    features, labels = torch.randn(30, 84), torch.arange(30) % 3
    images = torch.rand(30, 3, 32, 32) * 2 - 1
    viz.add_projector(writer, features, images, labels, ["a", "b", "雪"], 12)
    (folder,) = Path(writer.log_dir).glob("00012/*")
    rows = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(rows, features, rtol=1e-5)
    names = (folder / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert names == ["a", "b", "雪"] * 10
    sprite = np.asarray(Image.open(folder / "sprite.png"))[:20, 20:40] / 255  # the second image
    pixels = (images[1].permute(1, 2, 0) / 2 + 0.5).numpy()
    parts = [slice(i * 32 // 20, -(-(i + 1) * 32 // 20)) for i in range(20)]  # what each covers
    means = [[pixels[rows, columns].mean(axis=(0, 1)) for columns in parts] for rows in parts]
    np.testing.assert_allclose(sprite, means, atol=0.01)
    config = (Path(writer.log_dir) / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1


def test_hparams_are_one_session_without_an_experiment(writer):
    settings = {"lr": 0.1, "schedule": "onecycle", "augment": True, "epochs": 3}
    viz.add_hparams_start(writer, settings)
    viz.add_hparams_end(writer)
    events = written(writer)
    assert set(events) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    ((_, start),) = events["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    stored = content.session_start_info.hparams
    assert {name: stored[name].WhichOneof("kind") for name in stored} == {
        "lr": "number_value",
        "schedule": "string_value",
        "augment": "number_value",  # PyTorch writes True as 1
        "epochs": "number_value",
    }
    assert list(Path(writer.log_dir).parent.iterdir()) == [Path(writer.log_dir)]  # no second run


def test_the_layout_puts_both_losses_on_one_chart(writer):
    viz.add_layout(writer)
    ((_, value),) = written(writer)["custom_scalars__config__"]
    layout = Layout.FromString(value.tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for c in layout.category for chart in c.chart}
    assert charts == {
        "training and test loss": ["^training loss$", "^test loss$"],
        "learning rate": ["^learning rate$"],
    }


def test_tables_are_aligned_markdown_and_take_any_name():
    rows = [("class", "n"), ("a|b", "1"), ("line\nbreak", "22")]
    assert viz.markdown_table(rows).splitlines() == [
        "| class      | n  |",
        "|------------|----|",
        r"| a\|b       | 1  |",
        "| line break | 22 |",
    ]
