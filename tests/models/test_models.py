import pytest
import torch

from mechfeat.errors import ShapeError
from mechfeat.models import CifarResNet, DigitsCNN, ToyAutoencoder, mlp, train
from tests import real


def test_toy_autoencoder_is_its_formula():
    model, x = ToyAutoencoder(5, 2), torch.rand(3, 5)
    torch.testing.assert_close(model(x), torch.relu(x @ model.W @ model.W.T + model.b))


def test_same_generator_same_weights():
    a, b = (DigitsCNN(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_resnet_20_has_the_parameters_of_the_paper():
    # He et al. 2016, table 6: 0.27 M parameters.
    assert sum(p.numel() for p in CifarResNet(20).parameters()) == 269_722


def test_train_lowers_the_loss_and_is_reproducible():
    x = torch.randn(40, 4)
    y = (x[:, 0] > 0).long()
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = mlp([4, 16, 2])
        runs.append(train(model, x, y, epochs=30, lr=3e-2, generator=torch.Generator().manual_seed(0)))
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.5 * runs[0][0]


def test_errors():
    with pytest.raises(ShapeError) as error:
        mlp([3])
    assert str(error.value) == "mlp needs at least an input and an output width, and was given [3]."
    with pytest.raises(ShapeError) as error:
        CifarResNet(18)
    assert str(error.value) == "A CIFAR ResNet has 6 b + 2 layers: 8, 14, 20, 26, 32, ...; depth=18 is not among them."


@pytest.mark.full
def test_published_resnet_20_weights_load_and_classify():
    model, (x, y) = real.resnet20(), real.cifar_test_images()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(200)]) == y
    # PROVENANCE.md of the weights gives 81.35 % on these 2,000 recompressed images.
    assert float(right.double().mean()) == pytest.approx(0.8135, abs=0.005)
