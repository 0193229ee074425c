"""A table: gradient boosting predicts the course of diabetes; the squared error of each test patient is kept."""

from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor

x, y = load_diabetes(return_X_y=True)
y = (y - y.mean()) / y.std()
n_train = 150
outputs = {"test_loss": ((len(y) - n_train,), "float32")}


def train(mask, seed, device):
    model = GradientBoostingRegressor(n_estimators=20, max_depth=2, subsample=0.5)  # draws from NumPy's generator
    model.fit(x[:n_train][mask], y[:n_train][mask])
    return {"test_loss": (model.predict(x[n_train:]) - y[n_train:]) ** 2}


def names():
    columns = load_diabetes().feature_names
    rows = load_diabetes(scaled=False).data
    texts = [", ".join(f"{column} {value:g}" for column, value in zip(columns, row, strict=True)) for row in rows]
    return {"train": texts[:n_train], "test": texts[n_train:]}
