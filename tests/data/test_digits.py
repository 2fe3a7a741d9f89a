import torch

from mechfeat.data import digits


def test_split_is_a_partition_of_the_shipped_set():
    from sklearn.datasets import load_digits

    d = digits(n_test=300, seed=5)
    together = torch.cat([d.x_train, d.x_test]).flatten(1)
    assert together.shape == (1797, 64)
    assert float(together.min()) == 0.0
    assert float(together.max()) == 1.0
    want = sorted(
        (*map(float, image), float(y)) for image, y in zip(torch.as_tensor(load_digits().data / 16).tolist(), load_digits().target)
    )
    labels = torch.cat([d.y_train, d.y_test]).double()
    assert sorted(map(tuple, torch.cat([together, labels[:, None]], 1).tolist())) == want


def test_seed_decides_the_split():
    a, b, c = digits(seed=0), digits(seed=0), digits(seed=1)
    assert torch.equal(a.x_test, b.x_test)
    assert not torch.equal(a.x_test, c.x_test)
